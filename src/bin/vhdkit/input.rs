//! Standard input, and other streams.
//!
//! Owns: reading ahead, and that a signal is answered while the input has nothing to say. Must not know: what the bytes
//! are for.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;
use vhdkit::units::MIB;
use vhdkit::{CancelToken, Error, ErrorKind};

/// Bytes read at a time.
pub(crate) const CHUNK: u64 = 16 * MIB;

/// How long the input may be silent before it is asked whether to go on.
const PATIENCE: Duration = Duration::from_millis(100);

/// Standard input, without the buffer of `io::Stdin`.
///
/// # Errors
/// What the system answers.
pub(crate) fn stdin() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Input that comes in pieces, read by a thread of its own.
pub(crate) struct Stream<'a> {
    pieces: Receiver<io::Result<Vec<u8>>>,
    cancel: &'a CancelToken,
    /// A piece that is not read to its end, and how far it is.
    open: (Vec<u8>, usize),
}

impl<'a> Stream<'a> {
    /// Reads `input` ahead until `cancel` is pulled. Pieces have [`CHUNK`] bytes; the first ends where a multiple of it
    /// does when it goes to `offset`.
    pub(crate) fn new(mut input: File, offset: u64, cancel: &'a CancelToken) -> Self {
        let (sender, pieces) = mpsc::sync_channel(1);
        thread::spawn(move || {
            let mut room = CHUNK - offset % CHUNK;
            loop {
                let mut bytes = Vec::new();
                let read = (&mut input).take(room).read_to_end(&mut bytes);
                let last = !matches!(read, Ok(len) if len > 0);
                // Nobody waits for the rest once the other end is gone: the write failed.
                if matches!(read, Ok(0)) || sender.send(read.map(|_| bytes)).is_err() || last {
                    return;
                }
                room = CHUNK;
            }
        });
        Self { pieces, cancel, open: (Vec::new(), 0) }
    }

    /// The next piece; `None` at the end of the input.
    ///
    /// # Errors
    /// Of reading; `Cancelled`.
    pub(crate) fn next(&mut self) -> vhdkit::Result<Option<Vec<u8>>> {
        loop {
            if self.cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "cancelled"));
            }
            return match self.pieces.recv_timeout(PATIENCE) {
                Ok(bytes) => bytes.map(Some).map_err(|error| Error::io("read the input", error)),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => Ok(None),
            };
        }
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.open.1 == self.open.0.len() {
            self.open = (self.next()?.unwrap_or_default(), 0);
        }
        let (bytes, at) = &mut self.open;
        let len = buf.len().min(bytes.len() - *at);
        buf[..len].copy_from_slice(&bytes[*at..*at + len]);
        *at += len;
        Ok(len)
    }
}
