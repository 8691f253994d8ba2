//! Open sockets, kept for the next call.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::KernelError;
use crate::socket::Socket;

/// Addresses of our own sockets, by which the monitor tells our changes from those of others.
#[derive(Debug, Default)]
pub(crate) struct OwnPorts(Mutex<BTreeSet<u32>>);

impl OwnPorts {
    fn add(&self, port: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
    }

    fn remove(&self, port: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&port);
    }

    pub(crate) fn contains(&self, port: u32) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&port)
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    protocol: isize,
    idle: Mutex<Vec<Socket>>,
    own: Arc<OwnPorts>,
}

impl Pool {
    pub(crate) fn new(protocol: isize, own: Arc<OwnPorts>) -> Self {
        Self { protocol, idle: Mutex::default(), own }
    }

    /// Lends a socket. After a failed exchange answers may still be under way, so that socket is not used again.
    pub(crate) fn with<T>(
        &self,
        f: impl FnOnce(&mut Socket) -> Result<T, KernelError>,
    ) -> Result<T, KernelError> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = idle().pop();
        let mut socket = match kept {
            Some(socket) => socket,
            None => {
                let socket = Socket::open(self.protocol)?;
                self.own.add(socket.port());
                socket
            }
        };
        let result = f(&mut socket);
        if result.is_ok() {
            idle().push(socket);
        } else {
            self.own.remove(socket.port());
        }
        result
    }
}
