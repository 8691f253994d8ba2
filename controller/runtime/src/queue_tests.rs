use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::*;

const DELAY: RetryDelay =
    RetryDelay { first: Duration::from_millis(100), longest: Duration::from_millis(350) };

fn opened() -> Queue<u32> {
    let queue = Queue::new(DELAY);
    queue.open();
    queue
}

#[tokio::test(start_paused = true)]
async fn a_closed_queue_takes_nothing() {
    let queue = Queue::new(DELAY);
    queue.add(1);
    queue.add_after(2, Duration::ZERO);
    assert_eq!((queue.depth(), queue.delayed()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_key_added_twice_is_taken_once() {
    let queue = opened();
    queue.add(1);
    queue.add(1);
    queue.add(2);
    assert_eq!((queue.next().await, queue.next().await), (1, 2));
    assert_eq!(queue.depth(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_room_for_a_flood_is_given_back() {
    let queue = opened();
    let flood = u32::try_from(4 * ROOM).unwrap();
    (0..flood).for_each(|key| queue.add(key));
    for key in 0..flood {
        assert_eq!(queue.next().await, key);
    }
    let state = queue.state.lock();
    assert!(state.ready.capacity() <= ROOM && state.queued.capacity() <= ROOM);
}

#[tokio::test(start_paused = true)]
async fn a_key_added_while_running_runs_again_and_never_twice_at_once() {
    let queue = opened();
    queue.add(1);
    assert_eq!(queue.next().await, 1);
    queue.add(1);
    queue.add(1);
    assert_eq!(queue.depth(), 0, "it must not be taken by a second worker");
    queue.finish(&1, Outcome::Done);
    assert_eq!(queue.next().await, 1);
    queue.finish(&1, Outcome::Done);
    assert_eq!(queue.depth(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_earliest_request_counts() {
    let queue = opened();
    let start = Instant::now();
    queue.add_after(1, Duration::from_secs(9));
    queue.add_after(1, Duration::from_secs(2));
    queue.add_after(1, Duration::from_secs(5));
    assert_eq!(queue.next().await, 1);
    assert_eq!(start.elapsed(), Duration::from_secs(2));
    assert_eq!(queue.delayed(), 0);
}

#[tokio::test(start_paused = true)]
async fn an_immediate_request_replaces_a_timer() {
    let queue = opened();
    queue.add_after(1, Duration::from_secs(9));
    queue.add(1);
    assert_eq!(queue.next().await, 1);
    queue.finish(&1, Outcome::Done);
    assert_eq!((queue.depth(), queue.delayed()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_and_success_forgets_them() {
    let queue = opened();
    queue.add(1);
    let mut waits = Vec::new();
    for _ in 0..4 {
        let start = Instant::now();
        queue.next().await;
        waits.push(start.elapsed().as_millis());
        queue.finish(&1, Outcome::Retry);
    }
    assert_eq!(waits, [0, 100, 200, 350]);
    queue.next().await;
    queue.finish(&1, Outcome::Again(Duration::from_secs(3)));
    let start = Instant::now();
    queue.next().await;
    assert_eq!(start.elapsed(), Duration::from_secs(3));
    queue.finish(&1, Outcome::Retry);
    let start = Instant::now();
    queue.next().await;
    assert_eq!(start.elapsed(), Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn at_most_so_many_at_once_and_all_in_the_end() {
    let queue = opened();
    let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (tx, mut rx) = mpsc::unbounded_channel();
    for key in 0..100 {
        queue.add(key);
    }
    let (now, peak) = (running.clone(), most.clone());
    let task = tokio::spawn(queue.run(8, move |key| {
        let (now, peak, tx) = (now.clone(), peak.clone(), tx.clone());
        async move {
            peak.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(u64::from(key % 7) + 1)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            tx.send(key).unwrap();
            Outcome::Done
        }
    }));
    let mut seen = HashSet::new();
    while seen.len() < 100 {
        assert!(seen.insert(rx.recv().await.unwrap()), "no key is done twice");
    }
    assert_eq!(most.load(Ordering::SeqCst), 8);
    task.abort();
}
