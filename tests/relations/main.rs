//! Operations between images that outlive a process: snapshot sets, imports, resyncs, replicas.

mod import;
mod lab;
mod replica;
mod resync;
mod session;
