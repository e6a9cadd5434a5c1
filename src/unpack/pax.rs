//! Extended headers of a tar: PAX records (POSIX.1-2001) and GNU long names, read strictly.

use super::entries::EntriesError;

/// The largest extended header taken, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// The most records of one extended header; real ones have a handful.
pub const MAX_RECORDS: usize = 1000;

/// What the headers before an entry say of it.
#[derive(Debug, Default)]
pub struct Extensions {
    /// Its name.
    pub path: Option<Vec<u8>>,
    /// What it links to.
    pub link: Option<Vec<u8>>,
    /// Its length in bytes.
    pub size: Option<u64>,
    /// Which headers there were: PAX, GNU name, GNU link.
    seen: [bool; 3],
}

impl Extensions {
    /// Whether there was any header that must be followed by an entry.
    pub fn any(&self) -> bool {
        self.seen.contains(&true)
    }

    /// Takes the header of type `kind` with this body, which begins at `offset`. Answers why the archive must be
    /// rewritten, if so.
    pub fn take(&mut self, kind: u8, body: &[u8], offset: u64) -> Result<Option<&'static str>, EntriesError> {
        let corrupt = |what| EntriesError::Corrupt { offset, what };
        let slot = match kind {
            b'x' => 0,
            b'L' => 1,
            b'K' => 2,
            // git archive writes one with the commit's id. Anything that changes entries is refused: readers differ
            // in how long it lasts.
            _ => {
                for_each(body, offset, |key, _| match key {
                    b"comment" => Ok(()),
                    _ => Err(EntriesError::refused(key, "a global header sets it for all entries")),
                })?;
                return Ok(Some("the archive has a global header"));
            }
        };
        if std::mem::replace(&mut self.seen[slot], true) {
            return Err(corrupt("an entry has two extended headers of one type"));
        }
        if kind != b'x' {
            let end = body.iter().position(|b| *b == 0).unwrap_or(body.len());
            let (name, rest) = body.split_at(end);
            if name.is_empty() || rest.iter().any(|b| *b != 0) {
                return Err(corrupt("a GNU long name is empty or goes on after its zero"));
            }
            let field = if kind == b'L' { &mut self.path } else { &mut self.link };
            if field.replace(name.to_vec()).is_some() {
                return Err(corrupt("an entry has a PAX name and a GNU name"));
            }
            return Ok((rest.len() > 1).then_some("the archive has a padded GNU long name"));
        }
        let mut odd = None;
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for_each(body, offset, |key, value| {
            if keys.iter().any(|k| k == key) {
                return Err(EntriesError::refused(key, "a PAX header has this record twice"));
            }
            keys.push(key.to_vec());
            let name = |field: &mut Option<Vec<u8>>| {
                if value.is_empty() || value.contains(&0) {
                    return Err(EntriesError::refused(value, "a PAX header has an empty name or one with a zero byte"));
                }
                match field.replace(value.to_vec()) {
                    None => Ok(()),
                    Some(_) => Err(corrupt("an entry has a PAX name and a GNU name")),
                }
            };
            match key {
                b"path" => name(&mut self.path)?,
                b"mtime" if is_time(value) => {}
                b"size" => {
                    let size = str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
                    let size = size.and_then(|v| v.parse().ok()).filter(|n: &u64| *n <= i64::MAX as u64);
                    self.size = Some(size.ok_or_else(|| corrupt("a PAX size is not a number"))?);
                }
                b"linkpath" => {
                    name(&mut self.link)?;
                    odd = Some("the archive has PAX records besides path, mtime and size");
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(EntriesError::refused(key, "sparse files are not supported"));
                }
                _ => odd = Some("the archive has PAX records besides path, mtime and size"),
            }
            Ok(())
        })?;
        Ok(odd)
    }
}

/// A time as POSIX has it, which every reader takes.
fn is_time(value: &[u8]) -> bool {
    let value = value.strip_prefix(b"-").unwrap_or(value);
    let mut parts = value.splitn(2, |b| *b == b'.');
    let digits = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_digit);
    parts.next().is_some_and(|whole| digits(whole) && whole.len() <= 18) && parts.next().is_none_or(digits)
}

/// Calls `f` with each record, `<length> <key>=<value>\n`.
fn for_each(
    mut body: &[u8],
    offset: u64,
    mut f: impl FnMut(&[u8], &[u8]) -> Result<(), EntriesError>,
) -> Result<(), EntriesError> {
    let corrupt = || EntriesError::Corrupt { offset, what: "a PAX record is malformed" };
    let mut records = 0;
    while !body.is_empty() {
        records += 1;
        if records > MAX_RECORDS {
            return Err(EntriesError::Limit(format!("more than {MAX_RECORDS} PAX records in one header")));
        }
        let digits = body.iter().position(|b| *b == b' ').filter(|n| (1..=7).contains(n)).ok_or_else(corrupt)?;
        let number = str::from_utf8(&body[..digits]).ok().filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let len: usize = number.filter(|n| !n.starts_with('0')).and_then(|n| n.parse().ok()).ok_or_else(corrupt)?;
        let (record, rest) = body.split_at_checked(len).ok_or_else(corrupt)?;
        let record = record.get(digits + 1..).and_then(|r| r.strip_suffix(b"\n")).ok_or_else(corrupt)?;
        let equals = record.iter().position(|b| *b == b'=').filter(|n| *n > 0).ok_or_else(corrupt)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.contains(&0) {
            return Err(EntriesError::refused(key, "a PAX header's record has a zero byte in its key"));
        }
        f(key, value)?;
        body = rest;
    }
    Ok(())
}
