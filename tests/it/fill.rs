//! One fetch for all who ask, and what they read while it comes: the puller against a registry that misbehaves as told.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use larder::{
    class::Class,
    digest::Digest,
    metrics,
    oci::{Descriptor, Selector},
    pull::{Ask, FillError, Follower, How, Opened, PullError, Puller, Way},
    registry::{Budget, Client, Config, Credentials, Endpoint, Transport},
    secret::Secret,
    server::{Bound, Handler, Limits, Peer, body::Body},
    shutdown,
    store::{Bounds, Store},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpSocket, TcpStream},
    sync::watch,
};

use crate::support::registry::{Auth, Fault, Kind, Options, ScriptedRegistry, of};

/// The bytes at a blob's end that wait for its digest.
const HELD_BACK: usize = 64 << 10;
const LARGE: usize = (3 << 20) + 17;

struct World {
    registry: ScriptedRegistry,
    puller: Puller,
    _data: tempfile::TempDir,
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 251 + i) as u8).collect()
}

fn way_to(registry: &ScriptedRegistry, repository: &str) -> Arc<Way> {
    Arc::new(Way {
        endpoint: Endpoint {
            registry: registry.authority().parse().unwrap(),
            transport: Transport { plain_http: true, allow_loopback: true, ..Transport::default() },
            credentials: Credentials::Anonymous,
        },
        repository: repository.parse().unwrap(),
    })
}

fn descriptor(digest: Digest, size: usize) -> Descriptor {
    Descriptor {
        media_type: "application/octet-stream".to_owned(),
        digest,
        size: size as u64,
        platform: None,
        artifact_type: None,
        annotations: Default::default(),
    }
}

impl World {
    async fn new() -> Self {
        Self::with(Options::default()).await
    }

    async fn with(options: Options) -> Self {
        let data = tempfile::tempdir().unwrap();
        let store = Store::open(data.path()).unwrap();
        let client = Client::new(Config { retry_base: Duration::from_millis(1), ..Config::default() }).unwrap();
        let puller = Puller::new(store, client).unwrap();
        Self { registry: ScriptedRegistry::start_with(options).await, puller, _data: data }
    }

    fn ask(&self, digest: Digest) -> Ask {
        Ask {
            way: way_to(&self.registry, "team/app"),
            digest,
            size: None,
            entitled: false,
            further: Vec::new(),
            hold: Duration::ZERO,
            budget: Budget::within(Duration::from_secs(20)).silence(Duration::from_millis(300)),
        }
    }

    async fn open(&self, digest: Digest) -> Result<(Opened, How), PullError> {
        self.puller.open(&self.ask(digest)).await
    }

    fn holds(&self, digest: &Digest) -> bool {
        self.puller.store().get(digest).unwrap().is_some()
    }

    fn gets(&self) -> usize {
        self.registry.count(Kind::BlobGet)
    }
}

/// All that can be read of it from `start` on, and how it ended.
async fn read_from(opened: Opened, start: u64) -> (Vec<u8>, Result<(), FillError>) {
    let mut follower = match opened {
        Opened::Held(blob) => return (blob.to_vec().unwrap().split_off(start as usize), Ok(())),
        Opened::Filling(follower) => follower,
    };
    let mut bytes = Vec::new();
    let mut at = start;
    while at < follower.size() {
        let readable = match follower.readable(at).await {
            Ok(readable) => readable,
            Err(error) => return (bytes, Err(error)),
        };
        assert!(readable > at);
        while at < readable {
            let piece = follower.piece(at, readable).unwrap();
            assert!(!piece.is_empty());
            bytes.extend_from_slice(&piece);
            at += piece.len() as u64;
        }
    }
    (bytes, Ok(()))
}

async fn read(opened: Opened) -> (Vec<u8>, Result<(), FillError>) {
    read_from(opened, 0).await
}

fn follower(opened: Opened) -> Follower {
    match opened {
        Opened::Filling(follower) => follower,
        Opened::Held(blob) => panic!("{} is here already", blob.digest()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_askers_make_one_request_and_all_read_the_right_bytes() {
    for length in [0, 1, 64 << 10, (1 << 20) - 1, 1 << 20, LARGE] {
        let world = World::new().await;
        let bytes = Arc::new(content(length));
        let digest = world.registry.add_blob("team/app", &bytes);
        let asking: Vec<_> = (0..200)
            .map(|n| {
                let (puller, ask, bytes) = (world.puller.clone(), world.ask(digest), bytes.clone());
                tokio::spawn(async move {
                    let (opened, how) = puller.open(&ask).await.unwrap();
                    let start = n * bytes.len() / 200;
                    let (read, end) = read_from(opened, start as u64).await;
                    end.unwrap();
                    assert!(read == bytes[start..], "{length} from {start}");
                    how
                })
            })
            .collect();
        let mut misses = 0;
        for asker in asking {
            misses += usize::from(asker.await.unwrap() == How::Miss);
        }
        assert_eq!(world.gets(), 1, "{length}");
        assert!(misses >= 1, "somebody went to the upstream: {length}");
        assert!(world.holds(&digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_outlives_the_one_who_began_it() {
    let world = World::new().await;
    let bytes = content(LARGE);
    let digest = world.registry.add_blob("team/app", &bytes);
    world.registry.fault(of(Kind::BlobGet), 1, Fault::Delay(Duration::from_millis(200)));
    let (puller, ask) = (world.puller.clone(), world.ask(digest));
    let first = tokio::spawn(async move { puller.open(&ask).await.map(|_| ()) });
    while world.gets() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    first.abort();
    let (opened, how) = world.open(digest).await.unwrap();
    assert_eq!(how, How::Collapsed);
    assert!(read(opened).await.0 == bytes);
    assert_eq!(world.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_reads_nothing_holds_nobody_up() {
    let world = World::new().await;
    let bytes = content(LARGE);
    let digest = world.registry.add_blob("team/app", &bytes);
    let (slow, _) = world.open(digest).await.unwrap();
    let mut other = follower(world.open(digest).await.unwrap().0);
    assert!(other.finished().await.unwrap().is_ok());
    assert!(read(slow).await.0 == bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_goes_on_where_it_stopped() {
    for fault in [
        Fault::Cut { after: LARGE / 2, reset: true },
        Fault::Cut { after: LARGE / 2, reset: false },
        Fault::Stall { after: LARGE / 2 },
    ] {
        let world = World::new().await;
        let bytes = content(LARGE);
        let digest = world.registry.add_blob("team/app", &bytes);
        world.registry.fault(of(Kind::BlobGet), 1, fault.clone());
        let (read, end) = read(world.open(digest).await.unwrap().0).await;
        end.unwrap();
        assert!(read == bytes, "{fault:?}");
        let ranges: Vec<_> =
            world.registry.seen_of(Kind::BlobGet).iter().map(|s| s.header("range").is_some()).collect();
        assert_eq!(ranges, [false, true], "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_dies_for_good_ends_the_blob_where_it_died() {
    let half = LARGE / 2;
    for (fault, came) in [
        (Fault::Cut { after: half, reset: false }, half),
        (Fault::Stall { after: half }, half),
        (Fault::Stall { after: 0 }, 0),
    ] {
        let world = World::new().await;
        let bytes = content(LARGE);
        let digest = world.registry.add_blob("team/app", &bytes);
        world.registry.fault(of(Kind::BlobGet), 1, fault.clone());
        world.registry.fault(of(Kind::BlobGet), 9, Fault::Stall { after: 0 });
        let (read, end) = read(world.open(digest).await.unwrap().0).await;
        let error = end.unwrap_err();
        assert!(!error.is_wrong() && error.class() == Class::Net, "{error:?}");
        assert!(read == bytes[..came], "{fault:?}: {} bytes", read.len());
        assert!(!world.holds(&digest));
        assert!(world.gets() <= 3, "{fault:?}: {}", world.gets());
        // Who comes back for the rest must go on to its next source at once; after a while this one is asked again.
        world.registry.heal();
        let gets = world.gets();
        assert_eq!(world.open(digest).await.err().map(|error| error.class()), Some(Class::NotFound), "{fault:?}");
        assert_eq!(world.gets(), gets);
        world.puller.forget_mark(&world.ask(digest).way, digest);
        assert!(self::read(world.open(digest).await.unwrap().0).await.0 == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_source_goes_on_at_the_byte_where_the_first_died() {
    let (world, other) = (World::new().await, ScriptedRegistry::start().await);
    let bytes = content(LARGE);
    let digest = world.registry.add_blob("team/app", &bytes);
    other.add_blob("elsewhere/app", &bytes);
    world.registry.fault(of(Kind::BlobGet), 1, Fault::Cut { after: LARGE / 2, reset: false });
    world.registry.fault(of(Kind::BlobGet), 9, Fault::status(404));
    let ask = Ask { further: vec![way_to(&other, "elsewhere/app")], ..world.ask(digest) };
    let (read, end) = read(world.puller.open(&ask).await.unwrap().0).await;
    end.unwrap();
    assert!(read == bytes);
    let seen = other.seen_of(Kind::BlobGet);
    let range = format!("bytes={}-", LARGE / 2);
    assert_eq!(seen.iter().map(|s| s.header("range")).collect::<Vec<_>>(), [Some(range.as_str())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_neither_kept_nor_given_out_to_the_end_and_their_source_is_not_asked_again_at_once() {
    for length in [1000, LARGE] {
        let (world, other) = (World::new().await, ScriptedRegistry::start().await);
        let bytes = content(length);
        let digest = world.registry.add_blob("team/app", &bytes);
        other.add_blob("team/app", &bytes);
        let mut wrong = bytes.clone();
        wrong[length / 2] ^= 1;
        world.registry.fault(of(Kind::BlobGet), 1, Fault::Body(wrong));
        match world.open(digest).await {
            // Verified first.
            Err(error) => {
                assert_eq!((error.class(), length), (Class::Digest, 1000), "{error}");
            }
            Ok((opened, _)) => {
                let (read, end) = read(opened).await;
                assert!(end.unwrap_err().is_wrong());
                assert!(read.len() <= length - HELD_BACK && length == LARGE, "{} of {length}", read.len());
            }
        }
        assert!(!world.holds(&digest));
        let again = world.open(digest).await.unwrap_err();
        assert!(matches!(again, PullError::Marked { .. }) && again.class() == Class::NotFound, "{again}");
        assert_eq!(world.gets(), 1, "{length}");
        // Another source at once, and the first when it is forgiven.
        let ask = Ask { further: vec![way_to(&other, "team/app")], ..world.ask(digest) };
        assert!(read(world.puller.open(&ask).await.unwrap().0).await.0 == bytes);
        assert_eq!((world.gets(), other.count(Kind::BlobGet)), (1, 1), "{length}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_is_known_need_not_be_stated() {
    for (length, fault) in
        [(1000, Fault::NoLength), (1000, Fault::Chunked), (LARGE, Fault::NoLength), (LARGE, Fault::Chunked)]
    {
        let world = World::new().await;
        let bytes = content(length);
        let digest = world.registry.add_blob("team/app", &bytes);
        world.registry.fault(of(Kind::BlobGet), 1, fault.clone());
        let ask = Ask { size: Some(length as u64), ..world.ask(digest) };
        let (read, end) = read(world.puller.open(&ask).await.unwrap().0).await;
        end.unwrap();
        assert!(read == bytes, "{length} {fault:?}");
        assert_eq!(world.gets(), 1);
    }
}

/// Long enough for every test to be over.
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_that_come_before_the_hold_is_over_reach_nobody_and_are_an_error_to_all() {
    for wrong_at in [0, LARGE - 1] {
        let world = World::new().await;
        let bytes = content(LARGE);
        let digest = world.registry.add_blob("team/app", &bytes);
        let mut wrong = bytes.clone();
        wrong[wrong_at] ^= 1;
        world.registry.fault(of(Kind::BlobGet), 1, Fault::Body(wrong));
        let ask = Ask { hold: HOUR, budget: Budget::within(HOUR), ..world.ask(digest) };
        let asking = (0..8).map(|_| {
            let (puller, ask) = (world.puller.clone(), ask.clone());
            tokio::spawn(async move { puller.open(&ask).await.map(|_| ()) })
        });
        for asker in asking.collect::<Vec<_>>() {
            let error = asker.await.unwrap().unwrap_err();
            // Whoever came after its end finds the mark.
            assert!(matches!(error.class(), Class::Digest | Class::NotFound), "{error}");
        }
        assert_eq!(world.gets(), 1);
        world.puller.forget_mark(&ask.way, digest);
        let (opened, how) = world.puller.open(&ask).await.unwrap();
        assert_eq!(how, How::Miss);
        assert!(matches!(&opened, Opened::Held(_)), "all of it came: {opened:?}");
        assert!(read(opened).await.0 == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fill_that_takes_longer_than_the_hold_is_read_while_it_comes_and_a_later_asker_waits_for_nothing() {
    let world = World::new().await;
    let bytes = content(LARGE);
    let digest = world.registry.add_blob("team/app", &bytes);
    let (gate, open) = watch::channel(false);
    world.registry.fault(
        of(Kind::BlobGet),
        1,
        Fault::Gate { after: LARGE / 2, open, then: Box::new(Fault::IgnoreRange) },
    );
    let ask = |hold| Ask { hold, budget: Budget::within(HOUR), ..world.ask(digest) };
    // Half of it has come and no more does: what ends its wait is that its time is over.
    let mut first = follower(world.puller.open(&ask(Duration::from_millis(50))).await.unwrap().0);
    assert!(first.readable(0).await.unwrap() > 0);
    let (puller, patient) = (world.puller.clone(), ask(HOUR));
    let patient = tokio::spawn(async move { puller.open(&patient).await });
    // Its time was over before it came.
    let mut later = follower(world.puller.open(&ask(Duration::from_millis(50))).await.unwrap().0);
    while later.readable(LARGE as u64 / 2 - 1).await.unwrap() < LARGE as u64 / 2 {}
    assert!(!patient.is_finished());
    gate.send_replace(true);
    let (patient, how) = patient.await.unwrap().unwrap();
    assert_eq!(how, How::Collapsed);
    assert!(matches!(patient, Opened::Held(_)), "it waited for the end: {patient:?}");
    for opened in [Opened::Filling(first), Opened::Filling(later), patient] {
        assert!(read(opened).await.0 == bytes);
    }
    assert_eq!(world.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_from_whom_bytes_are_withheld_gets_none_before_the_digest_is_right_or_its_time_is_over() {
    for right in [true, false] {
        let world = World::new().await;
        let mut bytes = content(LARGE);
        let digest = world.registry.add_blob("team/app", &bytes);
        bytes[0] ^= u8::from(!right);
        let (gate, open) = watch::channel(false);
        let then = Box::new(Fault::Body(bytes.clone()));
        world.registry.fault(of(Kind::BlobGet), 1, Fault::Gate { after: LARGE / 2, open, then });
        let ask = Ask { budget: Budget::within(HOUR), ..world.ask(digest) };
        let mut eager = follower(world.puller.open(&ask).await.unwrap().0);
        let mut withheld = eager.clone();
        withheld.withhold(HOUR);
        let mut short = eager.clone();
        short.withhold(Duration::from_millis(50));
        while eager.readable(LARGE as u64 / 2 - 1).await.unwrap() < LARGE as u64 / 2 {}
        assert!(short.readable(0).await.unwrap() > 0, "its time is over");
        let waits = tokio::time::timeout(Duration::from_millis(50), withheld.readable(0)).await;
        assert!(waits.is_err(), "{waits:?}");
        {
            let mut many: Vec<_> = (0..6).map(|_| withheld.clone()).collect();
            assert!(many[0].readable(0).await.unwrap() > 0, "nine read");
        }
        gate.send_replace(true);
        let (read, end) = read(Opened::Filling(withheld)).await;
        if right {
            end.unwrap();
            assert!(read == bytes);
        } else {
            // It has nothing that it could not go on behind.
            assert!(read.is_empty() && matches!(end, Err(FillError::Cut(_))), "{} {end:?}", read.len());
            assert!(eager.finished().await.unwrap_err().is_wrong());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_through_memory_is_read_while_it_comes_whatever_the_hold() {
    let world = World::new().await;
    world.puller.store().bind(Bounds { max_bytes: Some(0), headroom_bytes: Some(u64::MAX) }, Vec::new).unwrap();
    let bytes = content(LARGE);
    let digest = world.registry.add_blob("team/app", &bytes);
    let (gate, open) = watch::channel(false);
    world.registry.fault(
        of(Kind::BlobGet),
        1,
        Fault::Gate { after: 100_000, open, then: Box::new(Fault::IgnoreRange) },
    );
    let ask = Ask { hold: HOUR, budget: Budget::within(HOUR), ..world.ask(digest) };
    let (opened, how) = tokio::time::timeout(Duration::from_secs(60), world.puller.open(&ask)).await.unwrap().unwrap();
    assert_eq!(how, How::Passed);
    let mut withheld = follower(opened);
    withheld.withhold(HOUR);
    assert!(tokio::time::timeout(Duration::from_secs(60), withheld.readable(0)).await.unwrap().unwrap() > 0);
    gate.send_replace(true);
    let (read, end) = read(Opened::Filling(withheld)).await;
    end.unwrap();
    assert!(read == bytes);
    assert_eq!(world.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_hangs_leaves_room_to_the_others_and_whose_turn_does_not_come_is_told_so() {
    /// Fills from one registry at once.
    const OF_ONE: usize = 64;
    let (world, other) = (World::new().await, ScriptedRegistry::start().await);
    world.registry.fault(of(Kind::BlobGet), usize::MAX, Fault::Hang);
    let hanging: Vec<_> = (0..300)
        .map(|n| {
            let (puller, ask) = (world.puller.clone(), world.ask(Digest::sha256(format!("{n}").as_bytes())));
            let ask = Ask { budget: Budget::within(HOUR), ..ask };
            tokio::spawn(async move { puller.open(&ask).await.map(|_| ()) })
        })
        .collect();
    while world.gets() < OF_ONE {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let bytes = content(LARGE);
    let digest = other.add_blob("team/app", &bytes);
    let elsewhere = Ask { way: way_to(&other, "team/app"), ..world.ask(digest) };
    assert!(read(world.puller.open(&elsewhere).await.unwrap().0).await.0 == bytes);
    let late = Ask { budget: Budget::within(Duration::from_millis(100)), ..world.ask(Digest::sha256(b"late")) };
    let error = world.puller.open(&late).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, PullError::Busy(_)) && error.class() == Class::Limit, "{error}");
    assert_eq!(world.gets(), OF_ONE);
    hanging.iter().for_each(|asker| asker.abort());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_that_differs_from_what_was_promised_is_refused() {
    for (stated, known, class) in [
        (Some((LARGE - 1).to_string()), Some(LARGE), Class::Size),
        (Some((LARGE + 1).to_string()), Some(LARGE), Class::Size),
        (None, None, Class::Proto),
    ] {
        let world = World::new().await;
        let digest = world.registry.add_blob("team/app", &content(LARGE));
        world.registry.fault(of(Kind::BlobGet), 9, Fault::Header("Content-Length", stated.clone()));
        let ask = Ask { size: known.map(|size| size as u64), ..world.ask(digest) };
        let error = world.puller.open(&ask).await.map(|(_, how)| how).unwrap_err();
        assert_eq!(error.class(), class, "{stated:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn knowing_a_digest_gives_no_right_to_what_is_held_or_coming() {
    let world = World::with(Options { auth: Auth::Basic("user", "password"), ..Options::default() }).await;
    let bytes = content(LARGE);
    let digest = world.registry.add_blob("team/app", &bytes);
    let entitled = |repository| {
        let way = way_to(&world.registry, repository);
        let credentials = Credentials::Basic { username: "user".to_owned(), password: Secret::new("password") };
        let endpoint = Endpoint { credentials, ..way.endpoint.clone() };
        Ask { way: Arc::new(Way { endpoint, ..(*way).clone() }), ..world.ask(digest) }
    };
    world.registry.fault(
        |seen| seen.kind == Kind::BlobGet && seen.header("authorization").is_some(),
        1,
        Fault::Stall { after: LARGE / 2 },
    );
    let (coming, _) = world.puller.open(&entitled("team/app")).await.unwrap();
    // While it comes: without a credential, and out of a repository that has it not.
    assert_eq!(world.open(digest).await.unwrap_err().class(), Class::Auth);
    let elsewhere = world.puller.open(&entitled("other/app")).await.unwrap_err();
    assert!(matches!(elsewhere, PullError::NotThere { .. }), "{elsewhere}");
    assert!(read(coming).await.0 == bytes);
    // And when it is here.
    assert_eq!(world.open(digest).await.unwrap_err().class(), Class::Auth);
    let elsewhere = world.puller.open(&entitled("other/app")).await.unwrap_err();
    assert_eq!(elsewhere.class(), Class::NotFound, "{elsewhere}");
    // Whom the upstream lets in has it, and a hit is only what an asker was known to be entitled to.
    assert_eq!(world.puller.open(&entitled("team/app")).await.unwrap().1, How::Miss);
    let known = Ask { entitled: true, ..entitled("team/app") };
    assert_eq!(world.puller.open(&known).await.unwrap().1, How::Hit);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reconciler_and_the_mirror_share_a_fill_of_the_same_way() {
    let world = World::new().await;
    let bytes = content(LARGE);
    let digest = world.registry.add_blob("team/app", &bytes);
    world.registry.fault(of(Kind::BlobGet), 1, Fault::Delay(Duration::from_millis(100)));
    let way = way_to(&world.registry, "team/app");
    let (ask, descriptor) = (world.ask(digest), descriptor(digest, LARGE));
    let pulling = world.puller.blob(&way, &descriptor, ask.budget);
    let (pulled, opened) = tokio::join!(pulling, world.puller.open(&ask));
    assert_eq!(pulled.unwrap().0.len(), LARGE as u64);
    assert!(read(opened.unwrap().0).await.0 == bytes);
    assert_eq!(world.gets(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_cannot_be_kept_is_passed_on_and_verified() {
    for length in [1000, LARGE] {
        let world = World::new().await;
        world.puller.store().bind(Bounds { max_bytes: Some(0), headroom_bytes: Some(u64::MAX) }, Vec::new).unwrap();
        let bytes = content(length);
        let digest = world.registry.add_blob("team/app", &bytes);
        let ask = Ask { entitled: true, ..world.ask(digest) };
        let asking = (0..8).map(|_| {
            let (puller, ask) = (world.puller.clone(), ask.clone());
            tokio::spawn(async move {
                let (opened, how) = puller.open(&ask).await.unwrap();
                (read(opened).await, how)
            })
        });
        for asker in asking.collect::<Vec<_>>() {
            let ((read, end), how) = asker.await.unwrap();
            end.unwrap();
            assert!(read == bytes, "{length}");
            assert_eq!(how, How::Passed);
        }
        assert!(!world.holds(&digest));
        let mut wrong = bytes.clone();
        wrong[0] ^= 1;
        world.registry.fault(of(Kind::BlobGet), 1, Fault::Body(wrong));
        match world.puller.open(&ask).await {
            Err(error) => assert_eq!(error.class(), Class::Digest),
            Ok((opened, _)) => {
                let (read, end) = read(opened).await;
                assert!(end.unwrap_err().is_wrong() && read.len() <= length - HELD_BACK);
            }
        }
        // The reconciler's pull says what is the matter.
        let way = way_to(&world.registry, "team/app");
        let pulled = world.puller.blob(&way, &descriptor(digest, length), ask.budget).await;
        assert_eq!(pulled.unwrap_err().class(), Class::Disk);
    }
}

/// Longer than what a machine's sockets hold.
const SOCKETFUL: usize = 32 << 20;

/// Answers every request with the blob, as it comes; but `/long` with a socketful and more.
struct Following(Puller, Ask);

impl Handler for Following {
    const LISTENER: metrics::Listener = metrics::Listener::Registry;

    async fn handle(&self, request: Request<Incoming>, _: Peer) -> Response<Body> {
        if request.uri().path() == "/long" {
            return Response::new(Body::memory(vec![0; SOCKETFUL]));
        }
        let follower = follower(self.0.open(&self.1).await.unwrap().0);
        let size = follower.size();
        Response::builder().header("content-length", size).body(Body::following(follower, 0, size)).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_early_and_in_order_where_the_upstream_died_and_before_the_last_bytes_where_they_are_wrong() {
    let bytes = content(LARGE);
    let mut wrong = bytes.clone();
    wrong[LARGE - 1] ^= 1;
    for (fault, least, most) in [
        (Fault::Cut { after: LARGE / 2, reset: false }, LARGE / 2, LARGE / 2),
        (Fault::Body(wrong), 0, LARGE - HELD_BACK),
        (Fault::IgnoreRange, LARGE, LARGE),
    ] {
        let world = World::new().await;
        let digest = world.registry.add_blob("team/app", &bytes);
        world.registry.fault(of(Kind::BlobGet), 1, fault.clone());
        if matches!(fault, Fault::Cut { .. }) {
            world.registry.fault(of(Kind::BlobGet), 9, Fault::status(404));
        }
        let bound = Bound::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = bound.address();
        let (_trigger, shutdown) = shutdown::channel();
        let handler = Arc::new(Following(world.puller.clone(), world.ask(digest)));
        let serving = tokio::spawn(larder::server::serve(bound, handler, Limits::default(), shutdown));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // An RST would be an error here.
        client.read_to_end(&mut answer).await.unwrap();
        let head = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
        let body = &answer[head..];
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        assert!((least..=most).contains(&body.len()), "{fault:?}: {} bytes", body.len());
        assert!(*body == bytes[..body.len()]);
        serving.abort();
    }
}

/// Whether a socket is read from; who waits for that.
#[derive(Default)]
struct Gate(Mutex<(bool, Option<Waker>)>);

impl Gate {
    fn set(&self, shut: bool) {
        let mut gate = self.0.lock().unwrap();
        gate.0 = shut;
        if let Some(waker) = gate.1.take() {
            waker.wake();
        }
    }
}

struct Gated(TcpStream, Arc<Gate>);

impl AsyncRead for Gated {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut gate = self.1.0.lock().unwrap();
        if gate.0 {
            gate.1 = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(gate);
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Gated {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_an_answer_ends_early_also_while_another_fills_the_socket() {
    let world = World::new().await;
    let digest = world.registry.add_blob("team/app", &content(LARGE));
    let (gate, open) = watch::channel(false);
    let half = LARGE / 2;
    let then = Box::new(Fault::Cut { after: half, reset: false });
    world.registry.fault(of(Kind::BlobGet), 1, Fault::Gate { after: half, open, then });
    world.registry.fault(of(Kind::BlobGet), 9, Fault::status(404));
    let bound = Bound::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 << 10).unwrap();
    let address = bound.address();
    let (_trigger, shutdown) = shutdown::channel();
    // Nothing of it falls silent meanwhile.
    let ask = Ask { budget: Budget::within(HOUR), ..world.ask(digest) };
    let serving = tokio::spawn(larder::server::serve(
        bound,
        Arc::new(Following(world.puller.clone(), ask)),
        Limits::default(),
        shutdown,
    ));
    let reads = Arc::new(Gate::default());
    let stream = Gated(socket.connect(address).await.unwrap(), reads.clone());
    let (mut send, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(2 * SOCKETFUL as u32)
        .initial_connection_window_size(3 * SOCKETFUL as u32)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = |path: &str| Request::get(format!("http://a{path}")).body(Empty::<Bytes>::new()).unwrap();
    let mut blob = send.send_request(request("/")).await.unwrap().into_body();
    let mut came = 0;
    while came < half {
        came += blob.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    reads.set(true);
    let other = tokio::spawn(send.send_request(request("/long")));
    // For the other answer to fill the socket, and for the blob's end to be seen.
    tokio::time::sleep(Duration::from_millis(300)).await;
    gate.send_replace(true);
    while world.gets() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    reads.set(false);
    let ended = tokio::time::timeout(Duration::from_secs(20), blob.frame()).await.expect("the answer ends");
    assert!(!matches!(ended, Some(Ok(_))) && came == half, "nothing more of it comes");
    let other = other.await.unwrap().unwrap().into_body().collect().await.unwrap();
    assert_eq!(other.to_bytes().len(), SOCKETFUL);
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_of_any_kind_come_as_they_are_and_what_is_none_does_not() {
    const UNKNOWN: &str = "application/vnd.example.thing+json";
    let world = World::new().await;
    let way = way_to(&world.registry, "team/app");
    let budget = world.ask(Digest::sha256(b"")).budget;
    let bytes = br#"{"schemaVersion":2,"mediaType":"application/vnd.example.thing+json"}"#;
    let digest = world.registry.add_manifest("team/app", Some("v1"), UNKNOWN, bytes);
    let tag = Selector::Tag("v1".parse().unwrap());
    for selector in [tag.clone(), Selector::Digest(digest)] {
        let raw = world.puller.raw_manifest(&way, &selector, budget).await.unwrap();
        assert_eq!((raw.digest, &raw.bytes[..], raw.media_type.as_deref()), (digest, &bytes[..], Some(UNKNOWN)));
        assert!(raw.kept && raw.document.is_none());
    }
    assert!(world.holds(&digest));
    // A HEAD tells; without its digest a GET does.
    let gets = world.registry.count(Kind::ManifestGet);
    let probed = world.puller.probe(&way, &tag, budget).await.unwrap();
    assert_eq!((probed.digest, probed.length), (digest, Some(bytes.len() as u64)));
    assert_eq!(world.registry.count(Kind::ManifestGet), gets);
    for fault in [Fault::status(405), Fault::status(404), Fault::Header("Docker-Content-Digest", None)] {
        world.registry.fault(of(Kind::ManifestHead), 1, fault.clone());
        let probed = world.puller.probe(&way, &tag, budget).await.unwrap();
        assert!(probed.digest == digest && probed.manifest.is_some(), "{fault:?}");
    }
    world.registry.fault(of(Kind::ManifestHead), 9, Fault::status(503));
    let error = world.puller.probe(&way, &tag, budget).await.map(|p| p.digest).unwrap_err();
    assert_eq!(error.class(), Class::Net);
    world.registry.heal();
    world.registry.add_manifest("team/app", Some("v1"), "text/html", b"<html>log in</html>");
    let error = world.puller.raw_manifest(&way, &tag, budget).await.map(|m| m.digest).unwrap_err();
    assert_eq!(error.class(), Class::Manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blobs_length_is_found_also_where_a_head_is_refused() {
    let world = World::new().await;
    let way = way_to(&world.registry, "team/app");
    let digest = world.registry.add_blob("team/app", &content(1000));
    let budget = world.ask(digest).budget;
    for (fault, gets) in [
        (None, 0),
        (Some(Fault::status(404)), 1),
        (Some(Fault::status(405)), 2),
        (Some(Fault::Header("Content-Length", None)), 3),
    ] {
        if let Some(fault) = fault {
            world.registry.fault(of(Kind::BlobHead), 1, fault);
        }
        assert_eq!(world.puller.blob_length(&way, digest, budget).await.unwrap(), Some(1000));
        assert_eq!(world.gets(), gets);
    }
    assert_eq!(world.puller.blob_length(&way, Digest::sha256(b"none"), budget).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_come_a_page_at_a_time_and_referrers_by_the_fallback_where_there_is_no_api() {
    let world = World::new().await;
    let way = way_to(&world.registry, "team/app");
    let subject = world.registry.add_manifest("team/app", None, "application/json", b"{}");
    let budget = world.ask(subject).budget;
    for tag in ["a", "b", "c"] {
        world.registry.add_manifest("team/app", Some(tag), "application/json", b"{}");
    }
    let first = world.puller.tags_page(&way, "n=2", budget).await.unwrap();
    let names = |tags: &[larder::oci::Tag]| tags.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&first.tags), ["a", "b"]);
    let second = world.puller.tags_page(&way, &first.next.unwrap(), budget).await.unwrap();
    assert_eq!((names(&second.tags), second.next), (vec!["c".to_owned()], None));
    let none = world.puller.referrers(&way, &subject, "", budget).await.unwrap();
    assert!(none.index.ends_with(br#""manifests":[]}"#) && none.filters_applied.is_none());
    let index = br#"{"schemaVersion":2,"manifests":[],"annotations":{"x":"y"}}"#;
    let tag = subject.to_string().replace(':', "-");
    world.registry.add_manifest("team/app", Some(&tag), "application/vnd.oci.image.index.v1+json", index);
    assert_eq!(world.puller.referrers(&way, &subject, "", budget).await.unwrap().index, &index[..]);
    // Some answer every path with a page, and some tags look like a digest's.
    for body in ["<html>welcome</html>", "[]", r#"{"manifests":{}}"#] {
        let page = Fault::Answer { status: 200, headers: Vec::new(), body: body.into() };
        world.registry.fault(|seen| seen.path.contains("/referrers/"), 1, page);
        assert_eq!(world.puller.referrers(&way, &subject, "", budget).await.unwrap().index, &index[..], "{body}");
    }
    world.registry.add_manifest("team/app", Some(&tag), "application/json", b"[1]");
    let error = world.puller.referrers(&way, &subject, "", budget).await.unwrap_err();
    assert_eq!(error.class(), Class::NotFound, "{error}");
}
