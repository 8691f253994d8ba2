//! The process that holds a pod's namespaces open: it does nothing until it is killed.
//! It has no dependency so that one `rustc` call makes a static program of it.

fn main() {
    loop {
        std::thread::park();
    }
}
