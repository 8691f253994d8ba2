//! A blocking netlink socket: batches of requests, and dumps.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use netlink_sys::SocketAddr;
use nix::sys::socket::{MsgFlags, setsockopt, sockopt};

use crate::error::{KernelError, Refusal};
use crate::wire::{self, HEADER, Message, Received, flag};

/// `NLMSG_ERROR`: an acknowledgement when its error number is 0.
const ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
const DONE: u16 = 3;
/// `NLMSGERR_ATTR_MSG`.
const ERROR_TEXT: u16 = 1;
/// `NLM_F_CAPPED`: the refused message was not copied into the answer.
const CAPPED: u16 = 0x100;
/// Bytes sent at once: enough for thousands of requests, far below the send buffer.
const CHUNK: usize = 256 * 1024;
/// Send and receive buffer. An nftables transaction has to fit into one send.
const BUFFER: usize = 16 * 1024 * 1024;
/// The kernel fills at most 32 KiB per dump message; acknowledgements are small.
const RECEIVE: usize = 64 * 1024;
/// How often an interrupted dump is repeated.
const DUMP_TRIES: usize = 20;

/// `NETLINK_ROUTE`.
pub(crate) const ROUTE: isize = 0;
/// `NETLINK_NETFILTER`.
pub(crate) const NETFILTER: isize = 12;

/// A socket in the network namespace of the thread that opened it; it stays there.
#[derive(Debug)]
pub(crate) struct Socket {
    inner: netlink_sys::Socket,
    port: u32,
    seq: u32,
    buffer: Vec<u8>,
}

/// Messages that answered a request.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    data: Vec<u8>,
    spans: Vec<(u16, Range<usize>)>,
}

impl Replies {
    fn push(&mut self, message: &Received<'_>) {
        let start = self.data.len();
        self.data.extend_from_slice(message.body);
        self.spans.push((message.kind, start..self.data.len()));
    }

    fn clear(&mut self) {
        self.data.clear();
        self.spans.clear();
    }

    /// Type and body of each message.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        self.spans.iter().map(|(kind, span)| (*kind, &self.data[span.clone()]))
    }

    /// Bodies of the messages of one type.
    pub(crate) fn of(&self, kind: u16) -> impl Iterator<Item = &[u8]> {
        self.iter().filter(move |(k, _)| *k == kind).map(|(_, body)| body)
    }
}

/// One result per request, in order.
pub(crate) type Outcomes = Vec<Result<(), Refusal>>;

impl Socket {
    pub(crate) fn open(protocol: isize) -> Result<Self, KernelError> {
        let open = || -> io::Result<Self> {
            let mut inner = netlink_sys::Socket::new(protocol)?;
            let address = inner.bind_auto()?;
            inner.set_ext_ack(true)?;
            inner.set_cap_ack(true)?;
            if protocol == ROUTE {
                inner.set_netlink_get_strict_chk(true)?;
            }
            setsockopt(&inner, sockopt::SndBufForce, &BUFFER)?;
            setsockopt(&inner, sockopt::RcvBufForce, &BUFFER)?;
            // The kernel is the only peer: nobody else's messages are accepted.
            inner.connect(&SocketAddr::new(0, 0))?;
            Ok(Self { port: address.port_number(), inner, seq: 0, buffer: vec![0; RECEIVE] })
        };
        open().map_err(KernelError::system("open a netlink socket"))
    }

    /// The socket's address, which the kernel writes on notifications of what this socket changed.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    fn send(&self, data: &[u8]) -> io::Result<()> {
        loop {
            match self.inner.send(data, 0) {
                Ok(n) if n == data.len() => return Ok(()),
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        loop {
            // MSG_TRUNC returns the length that the message really had.
            match nix::sys::socket::recv(self.inner.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(n) if n <= self.buffer.len() => return Ok(n),
                Ok(n) => return Err(io::Error::other(format!("a netlink message of {n} bytes was cut off"))),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Sends requests in as few system calls as possible. The kernel works on all of them, whatever becomes of
    /// single ones; only failures are answered, and the last request of each send.
    pub(crate) fn batch(&mut self, requests: Vec<Message>) -> Result<(Outcomes, Replies), KernelError> {
        let mut outcomes = Outcomes::with_capacity(requests.len());
        let mut replies = Replies::default();
        let mut pending = requests.into_iter().peekable();
        while pending.peek().is_some() {
            let first = self.seq.wrapping_add(1).max(1);
            let (mut data, mut count) = (Vec::with_capacity(4096), 0);
            while let Some(request) = pending.next_if(|r| count == 0 || data.len() + r.len() <= CHUNK) {
                let seq = self.next_seq();
                let last = pending.peek().is_none_or(|next| data.len() + request.len() + next.len() > CHUNK);
                data.extend_from_slice(&request.seal(seq, if last { flag::ACK } else { 0 }));
                count += 1;
            }
            let operation = || format!("exchange {count} netlink requests");
            self.send(&data).map_err(|e| KernelError::system(operation())(e))?;
            let mut results: Outcomes = vec![Ok(()); count];
            self.collect(first, &mut results, &mut replies)
                .map_err(|e| KernelError::system(operation())(e))?;
            outcomes.append(&mut results);
        }
        Ok((outcomes, replies))
    }

    /// Reads answers until the one to the last request has come.
    fn collect(&mut self, first: u32, results: &mut Outcomes, replies: &mut Replies) -> io::Result<()> {
        let last = results.len() - 1;
        loop {
            let n = self.receive()?;
            let mut complete = false;
            for message in wire::messages(&self.buffer[..n]) {
                let at = message.seq.wrapping_sub(first) as usize;
                match message.kind {
                    ERROR if at <= last => {
                        results[at] = refusal(&message).map_or(Ok(()), Err);
                        complete |= at == last;
                    }
                    ERROR | DONE => {}
                    _ if at <= last => replies.push(&message),
                    _ => {}
                }
            }
            if complete {
                return Ok(());
            }
        }
    }

    /// One request, with what it returned.
    pub(crate) fn one(&mut self, request: Message) -> Result<Result<Replies, Refusal>, KernelError> {
        let (outcomes, replies) = self.batch(vec![request])?;
        Ok(outcomes.into_iter().collect::<Result<Vec<()>, Refusal>>().map(|_| replies))
    }

    /// All objects of a kind. A dump that was disturbed is repeated.
    pub(crate) fn dump(&mut self, what: &str, request: &Message) -> Result<Replies, KernelError> {
        let operation = || format!("list {what}");
        let mut replies = Replies::default();
        for _ in 0..DUMP_TRIES {
            replies.clear();
            let seq = self.next_seq();
            self.send(&request.clone().seal(seq, flag::DUMP))
                .map_err(|e| KernelError::system(operation())(e))?;
            match self.read_dump(seq, &mut replies).map_err(|e| KernelError::system(operation())(e))? {
                DumpEnd::Complete => return Ok(replies),
                DumpEnd::Interrupted => {}
                DumpEnd::Refused(r) => return Err(KernelError::refused(operation())(r)),
            }
        }
        Err(KernelError::Unstable(operation()))
    }

    fn read_dump(&mut self, seq: u32, replies: &mut Replies) -> io::Result<DumpEnd> {
        let mut interrupted = false;
        loop {
            let n = self.receive()?;
            for message in wire::messages(&self.buffer[..n]).filter(|m| m.seq == seq) {
                interrupted |= message.flags & flag::DUMP_INTR != 0;
                match message.kind {
                    ERROR => {
                        let refusal = refusal(&message);
                        return Ok(refusal.map_or(DumpEnd::Complete, DumpEnd::Refused));
                    }
                    DONE => {
                        let errno = wire::u32_at(message.body, 0).map_or(0, |e| (e as i32).saturating_neg());
                        return Ok(match errno {
                            nix::libc::EINTR => DumpEnd::Interrupted,
                            e if e > 0 => DumpEnd::Refused(Refusal { errno: e, text: String::new() }),
                            _ if interrupted => DumpEnd::Interrupted,
                            _ => DumpEnd::Complete,
                        });
                    }
                    _ => replies.push(&message),
                }
            }
        }
    }

    /// An nftables transaction: all of it happens, or nothing. `begin` and `end` frame it.
    pub(crate) fn transaction(
        &mut self,
        begin: Message,
        body: Vec<Message>,
        end: Message,
    ) -> Result<Result<(), Refusal>, KernelError> {
        if body.is_empty() {
            return Ok(Ok(()));
        }
        let count = body.len();
        let first = self.seq.wrapping_add(1).max(1);
        let mut data = begin.seal(self.next_seq(), 0);
        for (i, message) in body.into_iter().enumerate() {
            let ack = if i + 1 == count { flag::ACK } else { 0 };
            data.extend_from_slice(&message.seal(self.next_seq(), ack));
        }
        data.extend_from_slice(&end.seal(self.next_seq(), 0));
        let run = |this: &mut Self| -> io::Result<Result<(), Refusal>> {
            this.send(&data)?;
            let mut failure = None;
            loop {
                let n = this.receive()?;
                let mut complete = false;
                for message in wire::messages(&this.buffer[..n]).filter(|m| m.kind == ERROR) {
                    let at = message.seq.wrapping_sub(first) as usize;
                    // An answer to the frame itself means that the transaction as a whole failed.
                    complete |= at == count || at == 0 || at == count + 1;
                    failure = failure.or(refusal(&message).filter(|_| at <= count + 1));
                }
                if complete {
                    return Ok(failure.map_or(Ok(()), Err));
                }
            }
        };
        run(self).map_err(KernelError::system("exchange an nftables transaction"))
    }
}

enum DumpEnd {
    Complete,
    Interrupted,
    Refused(Refusal),
}

/// `None` for an acknowledgement.
fn refusal(message: &Received<'_>) -> Option<Refusal> {
    let errno = (wire::u32_at(message.body, 0)? as i32).saturating_neg();
    if errno == 0 {
        return None;
    }
    // Without capping, the refused message follows the error in full.
    let echoed = if message.flags & CAPPED != 0 {
        HEADER
    } else {
        wire::u32_at(message.body, 4).map_or(HEADER, |len| len as usize)
    };
    let text = wire::attr(message.body, 4 + echoed, ERROR_TEXT).and_then(wire::text).unwrap_or_default();
    Some(Refusal { errno, text: text.to_owned() })
}
