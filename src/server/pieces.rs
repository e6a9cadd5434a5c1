//! Buffers for copies of blobs, used again on the thread that made them.
//!
//! A copy of 32 KiB is made in a microsecond or two; clearing a fresh buffer first would cost as much again. Buffers are
//! kept per thread, a few only, so that neither a lock nor much memory is needed; they go with the thread.

use std::cell::RefCell;

use bytes::Bytes;

/// The longest buffer that is kept, in bytes.
const LONGEST: usize = 32 << 10;
/// How many a thread keeps.
const KEPT: usize = 16;

thread_local! {
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer that goes back when the last [`Bytes`] of it is dropped, to the thread on which that is.
struct Lent {
    buffer: Vec<u8>,
    length: usize,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        // A thread that ends has nothing to keep it in any more.
        let _ = FREE.try_with(|free| {
            if let Ok(mut free) = free.try_borrow_mut()
                && free.len() < KEPT
            {
                free.push(buffer);
            }
        });
    }
}

/// The `length` bytes that `read` writes to the buffer it is given.
pub(super) fn fill<E>(length: usize, read: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Bytes, E> {
    if !(LONGEST / 4..=LONGEST).contains(&length) {
        // Small ones are cheaper made anew than kept waiting in a large buffer.
        let mut buffer = vec![0; length];
        read(&mut buffer)?;
        return Ok(Bytes::from(buffer));
    }
    let kept = FREE.try_with(|free| free.try_borrow_mut().ok()?.pop()).ok().flatten();
    let mut lent = Lent { buffer: kept.unwrap_or_else(|| vec![0; LONGEST]), length };
    read(&mut lent.buffer[..length])?;
    Ok(Bytes::from_owner(lent))
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    fn copy(length: usize, read: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<Bytes> {
        fill(length, read)
    }

    #[test]
    fn a_buffer_is_used_again_when_nobody_has_its_bytes_and_shows_nothing_old() {
        let first = copy(LONGEST, |b| {
            b.fill(1);
            Ok(())
        })
        .unwrap();
        let address = first.as_ptr();
        let slice = first.slice(5..);
        drop(first);
        let other = copy(LONGEST, |_| Ok(())).unwrap();
        assert_ne!(other.as_ptr(), address);
        drop(slice);
        let again = copy(LONGEST / 2, |b| {
            b.fill(2);
            Ok(())
        })
        .unwrap();
        assert_eq!(again.as_ptr(), address);
        assert_eq!(again, vec![2; LONGEST / 2]);
    }

    #[test]
    fn lengths_are_exact_and_failures_are_passed_on() {
        for length in [1, LONGEST / 4 - 1, LONGEST / 4, LONGEST, LONGEST + 1] {
            assert_eq!(copy(length, |_| Ok(())).unwrap().len(), length);
        }
        assert!(copy(LONGEST, |_| Err(io::ErrorKind::UnexpectedEof.into())).is_err());
    }
}
