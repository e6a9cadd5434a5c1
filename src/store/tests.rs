use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    time::Duration,
};

use super::*;
use crate::{class::Class, digest::Algorithm};

/// An empty store, and what removes it.
pub(super) fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path()).unwrap();
    (root, store)
}

fn put(store: &Store, content: &[u8], durability: Durability) -> Digest {
    store.put(Digest::sha256(content), content, durability).unwrap().digest()
}

fn path(store: &Store, digest: &Digest) -> PathBuf {
    store.root().join(layout::blob_path(digest))
}

fn read(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    store.get(digest).unwrap().map(|blob| {
        let bytes = blob.to_vec().unwrap();
        assert_eq!(blob.mapped(), bytes);
        assert_eq!(Digest::of(digest.algorithm(), &bytes), *digest, "a wrong byte");
        bytes
    })
}

/// All regular files below a directory.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root) else { return found };
    for entry in entries.map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Writes what a wicked neighbour would: in place, with the times put back.
pub(super) fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let meta = fs::metadata(path).unwrap();
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, meta.permissions()).unwrap();
    let times = fs::FileTimes::new().set_modified(meta.modified().unwrap()).set_accessed(meta.accessed().unwrap());
    fs::File::open(path).unwrap().set_times(times).unwrap();
    assert_eq!(fs::metadata(path).unwrap().mtime_nsec(), meta.mtime_nsec());
}

#[test]
fn what_is_put_is_got_also_after_reopening() {
    let (root, mut store) = store();
    for durability in [Durability::Now, Durability::Soon] {
        for content in [&b""[..], b"x", &[7; 300_000]] {
            for algorithm in Algorithm::ALL {
                let digest = Digest::of(algorithm, content);
                assert_eq!(store.put(digest, content, durability).unwrap().len(), content.len() as u64);
                assert_eq!(read(&store, &digest).as_deref(), Some(content));
                drop(store);
                store = Store::open(root.path()).unwrap();
                assert_eq!(read(&store, &digest).as_deref(), Some(content));
                let meta = fs::metadata(path(&store, &digest)).unwrap();
                assert_eq!(meta.permissions().mode() & 0o7777, 0o444);
            }
        }
    }
    assert_eq!(read(&store, &Digest::sha256(b"never put")), None);
    assert_eq!(files(&root.path().join("spool")), Vec::<PathBuf>::new());
    assert_eq!(fs::metadata(root.path()).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn damage_with_the_times_put_back_is_found_before_the_first_byte() {
    let content: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    type Change = fn(&mut Vec<u8>);
    let kinds: [(&str, Change); 4] = [
        ("one bit", |b| b[50_000] ^= 1),
        ("truncated to nothing", Vec::clear),
        ("one byte more", |b| b.push(0)),
        ("one byte less", |b| {
            b.pop();
        }),
    ];
    for (what, change) in kinds {
        for running in [true, false] {
            for durability in [Durability::Now, Durability::Soon] {
                let (root, mut store) = store();
                let digest = put(&store, &content, durability);
                assert!(read(&store, &digest).is_some());
                store.usage().unwrap();
                let before = store.get(&digest).unwrap().unwrap();
                if !running {
                    drop((store, before));
                    damage(&root.path().join(layout::blob_path(&digest)), change);
                    store = Store::open(root.path()).unwrap();
                } else {
                    damage(&path(&store, &digest), change);
                }
                assert_eq!(read(&store, &digest), None, "{what}, running {running}");
                assert!(!path(&store, &digest).exists());
                assert_eq!(store.health().quarantined, 1);
                assert_eq!(files(&root.path().join("quarantine")).len(), 1);
                assert_eq!(store.usage().unwrap().blobs, Count::default());
                // Fetched again, it is served again.
                put(&store, &content, durability);
                assert_eq!(read(&store, &digest).as_deref(), Some(&content[..]));
                assert_eq!(store.usage().unwrap().physical, content.len() as u64);
            }
        }
    }
}

#[test]
fn what_could_not_be_read_is_hashed_again_before_it_is_handed_out() {
    let (root, store) = store();
    let content = [7; 100_000];
    let (good, bad) = (put(&store, &content, Durability::Now), put(&store, &[8; 100_000], Durability::Now));
    for (digest, wrong) in [(good, false), (bad, true)] {
        let blob = store.get(&digest).unwrap().unwrap();
        let record = store.0.journal.lookup(&digest);
        blob.distrust();
        assert!(store.get_open(&digest).is_none());
        if wrong {
            // As a failing disk does it: nothing that the file's identity would tell.
            damage(&path(&store, &digest), |bytes| bytes[0] ^= 1);
            let id = layout::Identity::of(&fs::File::open(path(&store, &digest)).unwrap()).unwrap();
            store.0.journal.trust(&store.0.layout, &digest, id, 0);
        }
        assert_eq!(read(&store, &digest).is_some(), !wrong);
        // It was known to be on the disk; what was hashed now may lie in memory only.
        assert_ne!(store.0.journal.lookup(&digest), record);
    }
    assert_eq!(store.health().quarantined, 1);
    // The same where the one who finds out has the digest only.
    store.distrust(&good);
    assert!(store.get_open(&good).is_none());
    assert!(read(&store, &good).is_some());
    // And where the blob is closed before anybody asks again.
    let blob = store.get(&good).unwrap().unwrap();
    blob.distrust();
    drop(blob);
    for n in 0..5000u32 {
        put(&store, &n.to_le_bytes(), Durability::Soon);
    }
    damage(&path(&store, &good), |bytes| bytes[0] ^= 1);
    assert_eq!(read(&store, &good), None);
    assert_eq!(files(&root.path().join("quarantine")).len(), 2);
}

#[test]
fn what_is_put_aside_is_bounded_and_the_oldest_goes() {
    let (root, store) = store();
    for n in 0..4u8 {
        fs::write(root.path().join(format!("quarantine/{n}")), [0; 100]).unwrap();
    }
    assert_eq!(store.clear_quarantine(0, 250).unwrap(), 200);
    assert_eq!(files(&root.path().join("quarantine")).len(), 2);
    assert_eq!(store.clear_quarantine(u64::MAX, u64::MAX).unwrap(), 200);
    assert_eq!(files(&root.path().join("quarantine")).len(), 0);
}

#[test]
fn what_only_looks_touched_is_hashed_again_and_kept() {
    let (root, store) = store();
    let digest = put(&store, b"content", Durability::Now);
    damage(&path(&store, &digest), |_| {});
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"content"[..]));
    assert_eq!(store.health().quarantined, 0);
    // A copy of the file in its place: another inode, the same bytes.
    let file = path(&store, &digest);
    fs::copy(&file, root.path().join("copy")).unwrap();
    fs::rename(root.path().join("copy"), &file).unwrap();
    assert_eq!(read(&store, &digest).as_deref(), Some(&b"content"[..]));
    assert_eq!(store.health().quarantined, 0);
}

#[test]
fn a_name_that_is_no_file_is_put_aside() {
    type Make = fn(&Path);
    let kinds: [(&str, Make); 2] = [
        ("directory", |p| fs::create_dir(p).unwrap()),
        ("fifo", |p| {
            rustix::fs::mknodat(rustix::fs::CWD, p, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        }),
    ];
    for (what, make) in kinds {
        let (_root, store) = store();
        let digest = Digest::sha256(b"content");
        fs::create_dir_all(path(&store, &digest).parent().unwrap()).unwrap();
        make(&path(&store, &digest));
        assert_eq!(read(&store, &digest), None, "{what}");
        put(&store, b"content", Durability::Soon);
        assert_eq!(read(&store, &digest).as_deref(), Some(&b"content"[..]), "{what}");
    }
}

#[test]
fn a_symbolic_link_is_never_followed() {
    let (root, store) = store();
    let digest = Digest::sha256(b"content");
    fs::write(root.path().join("outside"), b"content").unwrap();
    fs::create_dir_all(path(&store, &digest).parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(root.path().join("outside"), path(&store, &digest)).unwrap();
    assert_eq!(store.get(&digest).unwrap_err().class(), Class::Disk);
}

#[test]
fn a_blob_that_was_linked_by_another_is_not_assumed_to_be_good() {
    for (there, quarantined) in [(&b"content"[..], 0), (b"cOntent", 1), (b"", 1)] {
        for durability in [Durability::Now, Durability::Soon] {
            let (_root, store) = store();
            store.usage().unwrap();
            let digest = Digest::sha256(b"content");
            let mut ingest = store.ingest(digest, Some(7)).unwrap();
            ingest.write(b"content").unwrap();
            fs::create_dir_all(path(&store, &digest).parent().unwrap()).unwrap();
            fs::write(path(&store, &digest), there).unwrap();
            assert_eq!(ingest.commit(durability).unwrap().to_vec().unwrap(), b"content");
            assert_eq!(read(&store, &digest).as_deref(), Some(&b"content"[..]));
            assert_eq!(store.health().quarantined, quarantined);
        }
    }
}

#[test]
fn size_is_compared_before_the_digest_and_nothing_stays_of_a_failure() {
    let (root, store) = store();
    let digest = Digest::sha256(b"content");
    type Pieces<'a> = &'a [&'a [u8]];
    let cases: [(&str, Option<u64>, Pieces<'_>, Class); 6] = [
        ("one byte more", Some(7), &[b"content", b"!"], Class::Size),
        ("more in one piece", Some(7), &[b"content!"], Class::Size),
        ("one byte less", Some(7), &[b"conten"], Class::Size),
        ("nothing", Some(7), &[], Class::Size),
        ("other bytes", Some(7), &[b"cOntent"], Class::Digest),
        ("other bytes of unknown size", None, &[b"content", b"!"], Class::Digest),
    ];
    for (what, size, pieces, class) in cases {
        let mut ingest = store.ingest(digest, size).unwrap();
        let mut result = pieces.iter().try_for_each(|piece| ingest.write(piece));
        if result.is_ok() {
            result = ingest.commit(Durability::Now).map(drop);
        } else {
            drop(ingest);
        }
        assert_eq!(result.unwrap_err().class(), class, "{what}");
        assert!(!path(&store, &digest).exists(), "{what}");
    }
    drop(store.ingest(digest, Some(1 << 20)).unwrap());
    assert_eq!(files(&root.path().join("spool")), Vec::<PathBuf>::new());
    assert_eq!(files(&root.path().join("blobs")), Vec::<PathBuf>::new());
    assert_eq!(store.usage().unwrap(), Usage::default());
    assert!(store.collect(Vec::new, Duration::ZERO).is_ok());
}

#[test]
fn a_file_system_without_unnamed_files_gives_the_same() {
    let (root, store) = store();
    store.0.layout.tmpfile.store(false, Ordering::Relaxed);
    for durability in [Durability::Now, Durability::Soon] {
        let digest = put(&store, format!("{durability:?}").as_bytes(), durability);
        assert!(store.0.journal.lookup(&digest).unwrap().id == store.get(&digest).unwrap().unwrap().identity());
        assert!(read(&store, &digest).is_some());
    }
    let mut dropped = store.scratch().unwrap();
    dropped.write(b"x").unwrap();
    assert_eq!(files(&root.path().join("spool")).len(), 1);
    drop(dropped);
    let mut scratch = store.scratch().unwrap();
    scratch.write(b"spooled").unwrap();
    let (spool, _) = scratch.into_spool().unwrap();
    assert_eq!(files(&root.path().join("spool")), Vec::<PathBuf>::new());
    assert_eq!(spool.mapped(), &b"spooled"[..]);
    assert_eq!(store.health().quarantined, 0);
}

#[test]
fn a_scratch_is_named_by_its_bytes_or_not_at_all() {
    let (root, store) = store();
    let write = |bytes: &[u8]| {
        let mut scratch = store.scratch().unwrap();
        scratch.write(bytes).unwrap();
        scratch
    };
    assert_eq!(write(b"one").commit(Durability::Now).unwrap().digest(), Digest::sha256(b"one"));
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, b"two");
        assert_eq!(write(b"two").commit_as(&digest, Durability::Now).unwrap().digest(), digest);
        let error = write(b"three").commit_as(&digest, Durability::Now).unwrap_err();
        assert_eq!(error.class(), Class::Digest);
    }
    let (spool, digest) = write(b"four").into_spool().unwrap();
    assert_eq!((spool.len(), digest), (4, Digest::sha256(b"four")));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut spool.reader(), &mut bytes).unwrap();
    assert_eq!(bytes, b"four");
    assert_eq!(files(&root.path().join("blobs")).len(), 3);
}

#[test]
fn a_follower_reads_what_has_landed() {
    let (_root, store) = store();
    let mut ingest = store.ingest(Digest::sha256(b"content"), Some(7)).unwrap();
    let landing = ingest.landing().unwrap();
    ingest.write(b"cont").unwrap();
    let mut buffer = [0; 4];
    landing.read(0, &mut buffer).unwrap();
    assert_eq!((&buffer, ingest.offset()), (b"cont", 4));
    assert_eq!(landing.read(1, &mut buffer).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    ingest.write(b"ent").unwrap();
    ingest.commit(Durability::Soon).unwrap();
    landing.read(3, &mut buffer).unwrap();
    assert_eq!(&buffer, b"tent");
}

#[test]
fn after_a_power_loss_only_what_was_on_the_disk_is_trusted() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open_in_boot(root.path(), 11).unwrap();
    let now = put(&store, b"now", Durability::Now);
    let made = put(&store, b"made", Durability::Soon);
    store.make_durable(&store.get(&made).unwrap().unwrap()).unwrap();
    let synced = put(&store, b"synced", Durability::Soon);
    store.sync_pending().unwrap();
    assert_eq!(store.pending_bytes(), 0);
    let soon = put(&store, b"soon", Durability::Soon);
    assert_eq!(store.pending_bytes(), 4);
    let boots = |store: &Store| [now, made, synced, soon].map(|d| store.0.journal.lookup(&d).unwrap().boot);
    assert_eq!(boots(&store), [0, 0, 0, 11]);
    drop(store);

    let store = Store::open_in_boot(root.path(), 13).unwrap();
    for digest in [now, made, synced, soon] {
        assert!(read(&store, &digest).is_some());
    }
    // Hashed again, so of this boot; and on the disk with the next pass.
    assert_eq!(boots(&store), [0, 0, 0, 13]);
    store.sync_pending().unwrap();
    assert_eq!(boots(&store), [0, 0, 0, 0]);
}

#[test]
fn a_blob_torn_by_a_power_loss_is_put_aside_though_its_identity_is_recorded() {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open_in_boot(root.path(), 11).unwrap();
    let digest = put(&store, b"content", Durability::Soon);
    let file = path(&store, &digest);
    drop(store);
    damage(&file, |b| b.fill(0));
    // The file as the power loss left it: what the journal says of it, and zeros.
    let layout = Layout::open(root.path(), false).unwrap();
    let id = Identity::of(&File::open(&file).unwrap()).unwrap();
    Journal::open(&layout).trust(&layout, &digest, id, 11);
    let store = Store::open_in_boot(root.path(), 13).unwrap();
    assert_eq!(read(&store, &digest), None);
}

#[test]
fn a_lost_journal_costs_hashing_and_nothing_else() {
    let (root, store) = store();
    let digest = put(&store, b"content", Durability::Now);
    drop(store);
    for damage in [None, Some(&b""[..]), Some(b"larder-j but torn")] {
        match damage {
            None => fs::remove_file(root.path().join("journal")).unwrap(),
            Some(bytes) => fs::write(root.path().join("journal"), bytes).unwrap(),
        }
        let store = Store::open(root.path()).unwrap();
        assert!(store.0.journal.lookup(&digest).is_none());
        assert_eq!(read(&store, &digest).as_deref(), Some(&b"content"[..]));
        assert!(store.0.journal.lookup(&digest).is_some());
    }
}

#[test]
fn a_second_opener_learns_who_holds_it() {
    let (root, store) = store();
    let holder = |admin: Option<&str>| Holder { pid: std::process::id(), admin: admin.map(str::to_string) };
    assert_eq!(Holder::of(root.path()), Some(holder(None)));
    for admin in [Some("127.0.0.1:9440"), Some("[::1]:1"), None] {
        store.set_admin_address(admin).unwrap();
        assert_eq!(Holder::of(root.path()), Some(holder(admin)));
    }
    store.set_admin_address(Some("127.0.0.1:9440")).unwrap();
    match Store::open(root.path()).err().unwrap() {
        StoreError::Locked { pid, admin, .. } => {
            assert_eq!((pid, admin.as_deref()), (Some(std::process::id()), Some("127.0.0.1:9440")));
        }
        other => panic!("{other}"),
    }
    let digest = put(&store, b"content", Durability::Soon);
    let reader = Store::open_read_only(root.path()).unwrap();
    assert_eq!(read(&reader, &digest).as_deref(), Some(&b"content"[..]));
    drop(store);
    assert_eq!(Holder::of(root.path()), None);
    Store::open(root.path()).unwrap();
}

#[test]
fn a_directory_of_somebody_elses_is_left_as_it_is() {
    use std::os::unix::fs::PermissionsExt as _;
    for (name, there) in [("mail", "mail"), ("spool/cron/root", "spool/cron"), ("spool/precious", "spool/precious")] {
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = root.path().join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "precious").unwrap();
        match Store::open(root.path()).err().unwrap() {
            StoreError::Foreign { name, .. } => assert_eq!(name, there),
            other => panic!("{other}"),
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert_eq!(root.path().metadata().unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }
    // A volume's, and what a first start leaves that was cut short.
    let root = tempfile::tempdir().unwrap();
    for name in ["lost+found", "blobs", "spool"] {
        std::fs::create_dir(root.path().join(name)).unwrap();
    }
    std::fs::write(root.path().join("lock"), "").unwrap();
    std::fs::write(root.path().join("spool/0123456789abcdef"), "format 1").unwrap();
    Store::open(root.path()).unwrap();
    assert_eq!(root.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_lock_whose_holder_is_gone_is_waited_for() {
    let (root, store) = store();
    // As by a child that has not come to its program yet.
    let child = std::fs::File::open(root.path().join("lock")).unwrap();
    drop(store);
    rustix::fs::flock(&child, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let program = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        drop(child);
    });
    assert!(Holder::of(root.path()).is_some());
    Store::open(root.path()).unwrap();
    program.join().unwrap();
}

#[test]
fn a_reader_writes_nothing() {
    let (root, store) = store();
    let digest = put(&store, b"content", Durability::Now);
    damage(&path(&store, &digest), |b| b[0] ^= 1);
    drop(store);
    let before: Vec<_> = files(root.path()).iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect();
    let reader = Store::open_read_only(root.path()).unwrap();
    assert_eq!(read(&reader, &digest), None);
    assert_eq!(reader.usage().unwrap().blobs.count, 1);
    assert_eq!(reader.verify(|_| {}, false).unwrap().problems.len(), 1);
    for error in [
        reader.ingest(digest, None).err().unwrap(),
        reader.scratch().err().unwrap(),
        reader.begin_tree("a", "b", "cd").err().unwrap(),
        reader.collect(Vec::new, Duration::ZERO).err().unwrap(),
        reader.verify(|_| {}, true).err().unwrap(),
        reader.pin("x", &[]).err().unwrap(),
        reader.close().err().unwrap(),
    ] {
        assert!(matches!(error, StoreError::OpenedReadOnly { .. }), "{error}");
    }
    let after: Vec<_> = files(root.path()).iter().map(|p| (p.clone(), fs::read(p).unwrap())).collect();
    assert_eq!(before, after);
}

#[test]
fn a_newer_format_is_refused_untouched_and_says_who_wrote_it() {
    let (root, store) = store();
    drop(store);
    let format = root.path().join("format");
    assert_eq!(fs::read_to_string(&format).unwrap(), format!("format 1\nlarder {}\n", env!("CARGO_PKG_VERSION")));
    fs::write(&format, "format 2\nlarder 9.8.7\n").unwrap();
    fs::write(root.path().join("spool/x"), "").unwrap();
    for error in [Store::open(root.path()).err().unwrap(), Store::open_read_only(root.path()).err().unwrap()] {
        assert!(matches!(&error, StoreError::NewerFormat { found: 2, version, .. } if version == "larder 9.8.7"));
        assert!(error.to_string().contains("larder 9.8.7"), "{error}");
        assert_eq!(error.class(), Class::Policy);
    }
    assert!(root.path().join("spool/x").exists());
    for nonsense in ["", "format\n", "format x\n", "format -1\n", "format 0\n", "1\n"] {
        fs::write(&format, nonsense).unwrap();
        assert!(matches!(Store::open(root.path()), Err(StoreError::Format { .. })), "{nonsense:?}");
    }
    fs::write(&format, "format 1\nlarder 0.0.1\n").unwrap();
    Store::open(root.path()).unwrap();
    assert!(!root.path().join("spool/x").exists());
}

#[test]
fn counts_are_exact_and_an_orderly_end_spares_the_listing() {
    let (root, mut store) = store();
    let mut expected = Count::default();
    for n in 0..50u32 {
        let content = vec![1; n as usize];
        put(&store, &content, Durability::Soon);
        expected += Count { count: 1, bytes: u64::from(n) };
        if n == 25 {
            assert_eq!(store.usage().unwrap().blobs, expected);
        }
        if n == 30 {
            store.close().unwrap();
            drop(store);
            store = Store::open(root.path()).unwrap();
        }
    }
    assert_eq!(store.usage().unwrap().blobs, expected);
    store.close().unwrap();
    // The noted counts are used: this one cannot be told by listing.
    let digest = Digest::sha256(&[1; 3]);
    let shadow = path(&store, &digest);
    drop(store);
    damage(&shadow, |b| b.push(0));
    let store = Store::open(root.path()).unwrap();
    assert_eq!(store.usage().unwrap().blobs, expected);
    // And not where the directory has changed since.
    store.close().unwrap();
    drop(store);
    fs::remove_file(&shadow).unwrap();
    let store = Store::open(root.path()).unwrap();
    expected.count -= 1;
    expected.bytes -= 3;
    assert_eq!(store.usage().unwrap().blobs, expected);
}

#[test]
fn open_blobs_are_bounded_and_the_oldest_is_closed() {
    let (_root, store) = store();
    let handles = Handles::with_capacity(64);
    let blobs: Vec<Blob> = (0..500u32)
        .map(|n| store.put(Digest::sha256(&n.to_le_bytes()), &n.to_le_bytes(), Durability::Soon).unwrap())
        .collect();
    for blob in &blobs {
        drop(handles.insert(blob.clone()));
        assert!(handles.get(&blobs[0].digest()).is_some(), "what is used stays");
    }
    assert!(handles.len() <= 64, "{}", handles.len());
    assert!(handles.get(&blobs[499].digest()).is_some());
    handles.remove(&blobs[499].digest(), None);
    assert!(handles.get(&blobs[499].digest()).is_none());
}

#[test]
fn verification_finds_what_trust_does_not_see_and_repairs_it() {
    let (root, store) = store();
    let good = put(&store, b"good", Durability::Now);
    let bad = put(&store, b"bad", Durability::Now);
    let tree = store.begin_tree("a", "b", "cd").unwrap();
    store.link_file(b"shared", true, tree.contents(), Path::new("f")).unwrap();
    assert_eq!(store.verify(|_| {}, false).unwrap(), Report { checked: 3, bytes: 13, problems: vec![] });

    damage(&path(&store, &bad), |b| b[0] ^= 1);
    let id = Identity::of(&File::open(path(&store, &bad)).unwrap()).unwrap();
    store.0.journal.trust(&store.0.layout, &bad, id, 0);
    let shared = files(&root.path().join("files")).remove(0);
    damage(&shared, |b| b.push(b'!'));
    fs::write(root.path().join("blobs/sha256/00"), "").ok();
    let stray = path(&store, &good).with_file_name("stray");
    fs::write(&stray, b"x").unwrap();
    let mut last = None;
    for (repair, repaired) in [(false, false), (true, true)] {
        let report = store.verify(|p| last = Some(p), repair).unwrap();
        let mut expected = vec![(path(&store, &bad), repaired), (shared.clone(), repaired), (stray.clone(), false)];
        expected.sort();
        assert_eq!(report.problems.iter().map(|p| (p.path.clone(), p.repaired)).collect::<Vec<_>>(), expected);
        assert_eq!(report.checked, 4);
    }
    assert_eq!(last.map(|p| (p.directories, p.of, p.checked)), Some((768, 768, 4)));
    assert_eq!(store.verify(|_| {}, false).unwrap().problems.len(), 1);
    assert_eq!(read(&store, &bad), None);
    assert_eq!(read(&store, &good).as_deref(), Some(&b"good"[..]));
}

#[test]
fn many_threads_agree_on_one_blob() {
    let (_root, store) = store();
    let content = vec![3; 200_000];
    let digest = Digest::sha256(&content);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (store, content) = (&store, &content);
            scope.spawn(move || {
                for _ in 0..5 {
                    if thread % 2 == 0 {
                        let durability = if thread == 0 { Durability::Now } else { Durability::Soon };
                        assert_eq!(store.put(digest, content, durability).unwrap().mapped(), *content);
                    } else if let Some(blob) = store.get(&digest).unwrap() {
                        assert_eq!(blob.mapped(), *content);
                    }
                }
            });
        }
    });
    assert_eq!(store.usage().unwrap().blobs, Count { count: 1, bytes: 200_000 });
    assert_eq!(store.health(), Health::default());
}
