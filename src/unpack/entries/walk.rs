//! One pass over an archive, header by header: each entry is judged by itself as it is met, and the first reason why the
//! archive may not pass through is noted.

use super::{
    Allowance, BLOCK, EntriesError, Entry, Index, Kind, MAX_NAME, Rewrite,
    header::{checksum_matches, common_numbers, is_zero, number, octal, text},
    name::{Clean, Unclean, clean},
    shown,
};
use crate::unpack::{
    data::ReadAt,
    pax::{self, Extensions},
};

const SPARSE: &str = "sparse files are not supported";

/// A walk over the archive `tar`.
pub(super) struct Walk<'a, T: ?Sized> {
    tar: &'a T,
    image: bool,
    allowance: &'a Allowance,
    at: u64,
    /// Whether there was an entry for the root.
    root: bool,
    index: Index,
}

impl<'a, T: ReadAt + ?Sized> Walk<'a, T> {
    /// At the archive's beginning.
    pub(super) fn new(tar: &'a T, image: bool, allowance: &'a Allowance) -> Self {
        let index = Index { entries: Vec::new(), pass_through: Ok(()), dropped: 0 };
        Self { tar, image, allowance, at: 0, root: false, index }
    }

    /// To the archive's end.
    pub(super) fn all(mut self) -> Result<Index, EntriesError> {
        while self.step()? {}
        Ok(self.index)
    }

    fn corrupt(&self, what: &'static str) -> EntriesError {
        EntriesError::Corrupt { offset: self.at, what }
    }

    /// Notes the first reason.
    fn rewrite(&mut self, entry: &[u8], why: &'static str) {
        if self.index.pass_through.is_ok() {
            self.index.pass_through = Err(Rewrite { entry: shown(entry), why });
        }
    }

    /// The block at `self.at`; `None` right at the archive's end.
    fn block(&self) -> Result<Option<[u8; BLOCK]>, EntriesError> {
        let left = self.tar.size().saturating_sub(self.at);
        if left == 0 {
            return Ok(None);
        }
        if left < BLOCK as u64 {
            return Err(self.corrupt("it ends inside a block"));
        }
        let bytes = self.tar.bytes_at(self.at, BLOCK).map_err(EntriesError::Read)?;
        Ok(bytes.first_chunk().copied())
    }

    /// Takes one entry with the headers before it; `false` at the archive's end.
    fn step(&mut self) -> Result<bool, EntriesError> {
        let mut extensions = Extensions::default();
        loop {
            let Some(block) = self.block()? else {
                if extensions.any() {
                    return Err(self.corrupt("it ends after a header that belongs to an entry"));
                }
                self.rewrite(b"", "the archive has no end marker");
                return Ok(false);
            };
            if is_zero(&block) {
                if extensions.any() {
                    return Err(self.corrupt("it ends after a header that belongs to an entry"));
                }
                self.end()?;
                return Ok(false);
            }
            if !checksum_matches(&block) {
                return Err(match self.at {
                    0 => EntriesError::NotTar,
                    _ => self.corrupt("a header does not match its checksum"),
                });
            }
            let size = number(&block[124..136]).map_err(|()| self.corrupt("an entry's size is not a number"))?;
            let start = self.at + BLOCK as u64;
            match block[156] {
                kind @ (b'x' | b'g' | b'L' | b'K') => {
                    if size > pax::MAX_BYTES {
                        return Err(EntriesError::Limit(format!(
                            "an extended header of {size} bytes at byte {}, the cap is {}",
                            self.at,
                            pax::MAX_BYTES
                        )));
                    }
                    // Global ones need no entry after them.
                    if kind == b'g' {
                        self.allowance.entry(0)?;
                    }
                    let end = self.data_end(start, size)?;
                    let body = self.tar.bytes_at(start, size as usize).map_err(EntriesError::Read)?;
                    let odd = extensions.take(kind, &body, self.at)?;
                    drop(body);
                    if let Some(why) = odd {
                        self.rewrite(b"", why);
                    }
                    self.at = end;
                }
                kind => {
                    self.entry(&block, kind, size, start, extensions)?;
                    return Ok(true);
                }
            }
        }
    }

    /// Where the block after an entry's data begins.
    fn data_end(&self, start: u64, len: u64) -> Result<u64, EntriesError> {
        start
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(BLOCK as u64))
            .filter(|end| *end <= self.tar.size())
            .ok_or_else(|| self.corrupt("it ends inside an entry's data"))
    }

    /// The end marker and what follows it.
    fn end(&mut self) -> Result<(), EntriesError> {
        self.at += BLOCK as u64;
        match self.block()? {
            None => self.rewrite(b"", "the archive's end marker is cut short"),
            // Go refuses this, GNU tar and Python stop here.
            Some(block) if !is_zero(&block) => return Err(self.corrupt("a lone block of zeros")),
            Some(_) => {}
        }
        while self.at < self.tar.size() {
            let len = (self.tar.size() - self.at).min(64 << 10);
            let rest = self.tar.bytes_at(self.at, len as usize).map_err(EntriesError::Read)?;
            let zero = is_zero(&rest);
            drop(rest);
            if !zero {
                self.rewrite(b"", "something follows the archive's end marker");
                break;
            }
            self.at += len;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        typeflag: u8,
        header_size: u64,
        start: u64,
        extensions: Extensions,
    ) -> Result<(), EntriesError> {
        let header_name = self.header_name(block)?;
        let name = extensions.path.as_deref().unwrap_or(&header_name);
        if name.len() > MAX_NAME {
            return Err(EntriesError::Limit(format!(
                "the name {:?} has {} bytes, the cap is {MAX_NAME}",
                shown(name),
                name.len()
            )));
        }
        self.allowance.entry(name.len())?;
        let size = extensions.size.unwrap_or(header_size);
        if size != header_size {
            self.rewrite(name, "has a PAX size that differs from its header's");
        }
        if !common_numbers(block) {
            self.rewrite(name, "has numbers in its header that not every reader takes");
        }
        let mode =
            octal(&block[100..108]).map_err(|()| EntriesError::refused(name, "its mode is not an octal number"))?;
        // A symlink, hard link, device, directory has no data in any reader that looks at its type; one that looks at
        // its size alone would read on somewhere else.
        if !matches!(typeflag, b'0' | 0 | b'7') && size != 0 {
            let why = if typeflag == b'S' { SPARSE } else { "it has data, which its type cannot have" };
            return Err(EntriesError::refused(name, why));
        }
        let end = self.data_end(start, size)?;
        let file = Kind::File { offset: start, len: size };
        let slash = name.ends_with(b"/");
        let kind = match typeflag {
            b'5' => Kind::Dir,
            // v7 had no type for directories.
            0 if slash && size == 0 => {
                self.rewrite(name, "is a directory in the notation of v7");
                Kind::Dir
            }
            b'0' | 0 if !slash => file,
            b'7' if !slash => {
                self.rewrite(name, "is a contiguous file");
                file
            }
            b'0' | 0 | b'7' => return Err(EntriesError::refused(name, "it is a file, yet its name ends with a slash")),
            b'2' => Kind::Dropped,
            b'1' if self.image => {
                let target = extensions.link.as_deref().unwrap_or_else(|| text(&block[157..257]));
                let target = clean(target).map_err(|why| {
                    EntriesError::refused(name, format!("it is a hard link to {:?}: {why}", shown(target)))
                })?;
                // Flux reads it as an empty file.
                self.rewrite(name, "is a hard link");
                Kind::HardLink(target.path)
            }
            b'1' => return Err(EntriesError::refused(name, "it is a hard link, which an artifact cannot have")),
            b'3' | b'4' | b'6' | b's' if self.image => Kind::Dropped,
            b'3' | b'4' => return Err(EntriesError::refused(name, "it is a device, which an artifact cannot have")),
            b'6' => return Err(EntriesError::refused(name, "it is a fifo, which an artifact cannot have")),
            b's' => return Err(EntriesError::refused(name, "it is a socket, which an artifact cannot have")),
            b'S' => return Err(EntriesError::refused(name, SPARSE)),
            other => {
                return Err(EntriesError::refused(name, format!("its type {:?} is unknown", char::from(other))));
            }
        };
        self.at = end;
        if kind == Kind::Dropped {
            self.index.dropped += 1;
            self.rewrite(name, "is a symlink or a special file");
            // Its name leads nowhere; a bad one harms nobody. In an image it hides what lies below.
            if let Ok(Clean { path, .. }) = clean(name)
                && self.image
                && !path.is_empty()
            {
                self.index.entries.push(Entry { path, kind, mode: 0 });
            }
            return Ok(());
        }
        let cleaned = clean(name).map_err(|why| match why {
            Unclean::Limit(why) => EntriesError::Limit(format!("the name {:?} {why}", shown(name))),
            Unclean::Refused(why) => EntriesError::refused(name, why),
        })?;
        if !cleaned.as_written {
            self.rewrite(name, "is not a clean name");
        }
        if cleaned.path.chars().any(char::is_control) {
            self.rewrite(name, "has control characters in its name");
        }
        let type_bits = if kind == Kind::Dir { 0o040_000 } else { 0o100_000 };
        if mode & !0o7777 != 0 && mode & !0o7777 != type_bits {
            self.rewrite(name, "has a mode that names another type");
        }
        if mode & 0o7000 != 0 {
            self.rewrite(name, "is setuid, setgid or sticky");
        }
        if kind != Kind::Dir && mode & 0o400 == 0 {
            self.rewrite(name, "is not readable by its owner");
        }
        if cleaned.path.is_empty() {
            if kind != Kind::Dir {
                return Err(EntriesError::refused(name, "it names the root, yet is not a directory"));
            }
            if std::mem::replace(&mut self.root, true) {
                self.rewrite(name, "occurs more than once");
            }
            return Ok(());
        }
        self.index.entries.push(Entry { path: cleaned.path, kind, mode: (mode & 0o7777) as u32 });
        Ok(())
    }

    /// The name in the header itself.
    fn header_name(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>, EntriesError> {
        let name = text(&block[..100]);
        let ustar = &block[257..263] == b"ustar\0";
        if !ustar {
            // Python takes a prefix from these formats too, the others do not.
            if !is_zero(&block[345..500]) {
                self.rewrite(name, "has a header that not every reader takes the same way");
            }
            return Ok(name.to_vec());
        }
        if &block[508..] == b"tar\0" {
            // star's format: the prefix is shorter, times follow it.
            if !is_zero(&block[476..508]) {
                return Err(EntriesError::refused(name, "its header is in star's format, which readers disagree on"));
            }
            self.rewrite(name, "has a header in star's format");
        }
        let prefix = text(&block[345..500]);
        if prefix.is_empty() {
            return Ok(name.to_vec());
        }
        Ok([prefix, b"/", name].concat())
    }
}
