//! Every interleaving, as far as a random scheduler finds them, of writers and readers of one fill: the file that decides
//! is compiled here once more, over the scheduler's locks.

// It is the very file of the flight; not all of what it offers is used here.
#![allow(dead_code, clippy::duplicate_mod)]

mod sync {
    pub use shuttle::sync::Mutex;
}

#[path = "fill.rs"]
mod fill;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use fill::{Board, End, Joined, Reader};
use shuttle::future::{block_on, spawn};

/// How many schedules each test tries.
const SCHEDULES: usize = 1000;

type Plain = Board<u8, (), u8, u32>;

/// Joins until a fill ends with a result, and says it; `work` has the writer whenever it comes to this asker.
async fn ask<F: Future<Output = ()>>(board: Plain, tries: Arc<AtomicUsize>, work: impl Fn(Writer, usize) -> F) -> u32 {
    loop {
        let (mut reader, writer) = match board.join(&0, || ()) {
            Joined::First(writer, reader) => (reader, Some(writer)),
            Joined::Follow(reader) => (reader, None),
        };
        if let Some(writer) = writer {
            work(writer, tries.fetch_add(1, SeqCst)).await;
        }
        if let End::Done(result) = reader.until(|view| view.end.cloned()).await {
            return result;
        }
    }
}

type Writer = fill::Writer<u8, (), u8, u32>;

#[test]
fn of_all_who_join_at_once_one_fills_and_all_have_its_result() {
    shuttle::check_random(
        || {
            let (board, tries, at_it) =
                (Plain::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let askers: Vec<_> = (0..3)
                .map(|_| {
                    let (board, tries, at_it) = (board.clone(), tries.clone(), at_it.clone());
                    spawn(ask(board, tries, move |writer, _| {
                        let at_it = at_it.clone();
                        async move {
                            assert_eq!(at_it.fetch_add(1, SeqCst), 0, "two fill at once");
                            writer.begin(Arc::new(7));
                            writer.reach(10);
                            shuttle::future::yield_now().await;
                            at_it.fetch_sub(1, SeqCst);
                            writer.finish(42);
                        }
                    }))
                })
                .collect();
            let results = block_on(async move {
                let mut results = Vec::new();
                for asker in askers {
                    results.push(asker.await.unwrap());
                }
                results
            });
            assert_eq!(results, [42, 42, 42]);
            assert!(board.is_empty());
        },
        SCHEDULES,
    );
}

#[test]
fn a_lost_writer_is_replaced_and_strands_nobody() {
    shuttle::check_random(
        || {
            let (board, tries) = (Plain::default(), Arc::new(AtomicUsize::new(0)));
            let askers: Vec<_> = (0..3)
                .map(|_| {
                    let (board, tries) = (board.clone(), tries.clone());
                    // The first to fill goes without a word.
                    spawn(ask(board, tries, |writer, n| async move {
                        if n > 0 {
                            writer.finish(n as u32);
                        }
                    }))
                })
                .collect();
            block_on(async move {
                for asker in askers {
                    assert!(asker.await.unwrap() > 0);
                }
            });
            assert!(board.is_empty());
        },
        SCHEDULES,
    );
}

#[test]
fn whoever_joins_is_never_given_up() {
    shuttle::check_random(
        || {
            let board = Plain::default();
            let Joined::First(writer, first) = board.join(&0, || ()) else { panic!("nobody was there") };
            let leaving = spawn(async move { drop(first) });
            let filling = spawn(async move {
                // A moment in which the first may go, and somebody else come.
                shuttle::future::yield_now().await;
                if writer.abandon() {
                    return true;
                }
                writer.finish(1);
                false
            });
            let other = board.clone();
            let joining = spawn(async move {
                match other.join(&0, || ()) {
                    Joined::First(writer, mut reader) => {
                        writer.finish(2);
                        reader.until(|view| view.end.cloned()).await
                    }
                    Joined::Follow(mut reader) => reader.until(|view| view.end.cloned()).await,
                }
            });
            let (abandoned, end) = block_on(async move {
                leaving.await.unwrap();
                (filling.await.unwrap(), joining.await.unwrap())
            });
            match end {
                End::Done(1) => assert!(!abandoned),
                // It came after the end of the first fill, however that was.
                End::Done(2) => {}
                end => panic!("{end:?}"),
            }
            assert!(board.is_empty());
        },
        SCHEDULES,
    );
}

#[test]
fn a_reader_sees_every_step_it_waits_for_and_none_goes_back() {
    async fn read(mut reader: Reader<(), u8, u32>) -> Vec<u64> {
        let mut seen = vec![0];
        loop {
            let last = seen[seen.len() - 1];
            let next = reader.until(|view| {
                assert!(view.reached == 0 || view.source.is_some());
                if view.reached > last { Some(Some(view.reached)) } else { view.end.map(|_| None) }
            });
            match next.await {
                Some(reached) => seen.push(reached),
                None => return seen,
            }
        }
    }
    shuttle::check_random(
        || {
            let board = Plain::default();
            let Joined::First(writer, first) = board.join(&0, || ()) else { panic!("nobody was there") };
            let second = board.follow(&0, |()| true).expect("it is under way");
            let readers = [spawn(read(first)), spawn(read(second))];
            let filling = spawn(async move {
                writer.begin(Arc::new(0));
                for reached in [3, 5, 9] {
                    writer.reach(reached);
                }
                writer.finish(0);
            });
            block_on(async move {
                for reader in readers {
                    let seen = reader.await.unwrap();
                    assert!(seen.is_sorted() && seen.last() == Some(&9), "{seen:?}");
                }
                filling.await.unwrap();
            });
        },
        SCHEDULES,
    );
}

#[test]
fn a_writer_that_waits_for_readers_is_woken_when_the_last_one_goes_and_when_one_comes() {
    shuttle::check_random(
        || {
            let board = Plain::default();
            let Joined::First(writer, first) = board.join(&0, || ()) else { panic!("nobody was there") };
            let (other, gone) = (board.clone(), Arc::new(AtomicUsize::new(0)));
            let seen = gone.clone();
            let filling = spawn(async move {
                writer.until_read(false).await;
                gone.store(1, SeqCst);
                writer.until_read(true).await;
                writer.finish(3);
            });
            let readers = spawn(async move {
                drop(first);
                while seen.load(SeqCst) == 0 {
                    shuttle::future::yield_now().await;
                }
                other.follow(&0, |()| true).expect("it is under way").until(|view| view.end.cloned()).await
            });
            block_on(async move {
                assert!(matches!(readers.await.unwrap(), End::Done(3)));
                filling.await.unwrap();
            });
        },
        SCHEDULES,
    );
}
