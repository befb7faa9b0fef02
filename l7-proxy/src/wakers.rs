//! Tasks that wait for the same thing. A task that is polled again and again is registered once, not with every poll.

use std::{
    future::poll_fn,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use slab::Slab;

/// The tasks that are woken together.
#[derive(Debug, Default)]
pub(crate) struct Wakers(Mutex<Slab<Waker>>);

/// A task among others, until this is dropped.
#[derive(Debug)]
pub(crate) struct Registration<W: Deref<Target = Wakers>> {
    wakers: W,
    key: usize,
    waker: Waker,
}

impl<W: Deref<Target = Wakers>> Registration<W> {
    pub(crate) fn new(wakers: W, waker: &Waker) -> Self {
        let key = wakers.lock().insert(waker.clone());
        Self { wakers, key, waker: waker.clone() }
    }

    /// Whether it is the task of this waker.
    pub(crate) fn wakes(&self, waker: &Waker) -> bool {
        self.waker.will_wake(waker)
    }
}

impl<W: Deref<Target = Wakers>> Drop for Registration<W> {
    fn drop(&mut self) {
        // The waker that is removed under the lock is not the last one of its task: `self` has another.
        self.wakers.lock().try_remove(self.key);
    }
}

/// The task of a connection, registered for all that waits in it.
#[derive(Debug)]
pub(crate) struct OfTask {
    wakers: Arc<Wakers>,
    registered: Mutex<Option<Registration<Arc<Wakers>>>>,
}

impl OfTask {
    pub(crate) fn new(wakers: &Arc<Wakers>) -> Self {
        Self { wakers: Arc::clone(wakers), registered: Mutex::default() }
    }

    /// Whether it is the task of this waker that is registered; the first one is from now on.
    fn wakes(&self, waker: &Waker) -> bool {
        let mut registered = self.registered.lock().unwrap_or_else(PoisonError::into_inner);
        let known = registered.get_or_insert_with(|| Registration::new(Arc::clone(&self.wakers), waker));
        known.wakes(waker)
    }
}

impl Wakers {
    /// Wakes all tasks. They stay registered.
    pub(crate) fn wake(&self) {
        let all: Vec<Waker> = self.lock().iter().map(|(_, waker)| waker.clone()).collect();
        all.into_iter().for_each(Waker::wake);
    }

    /// Waits until `found` has something. What it looks at changes before [`Self::wake`] is called. A task that `of_task`
    /// has registered is not registered again.
    pub(crate) async fn until<T>(&self, of_task: Option<&OfTask>, found: impl Fn() -> Option<T>) -> T {
        let mut registered: Option<Registration<&Self>> = None;
        poll_fn(|context| {
            if let Some(thing) = found() {
                return Poll::Ready(thing);
            }
            let waker = context.waker();
            let is_known = registered.as_ref().is_some_and(|known| known.wakes(waker))
                || of_task.is_some_and(|task| task.wakes(waker));
            if !is_known {
                registered = Some(Registration::new(self, waker));
            }
            // It may have come before the task was registered.
            found().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Waker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicBool, AtomicUsize, Ordering},
        task::{Context, Wake},
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_task_is_woken_wherever_it_was_polled_last_and_leaves_nothing_behind() {
        let wakers = Wakers::default();
        let has_come = AtomicBool::new(false);
        let woken = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        let [first, second] = woken.clone().map(Waker::from);
        {
            let mut waiting = pin!(wakers.until(None, || has_come.load(Ordering::Relaxed).then_some(7)));
            for waker in [&first, &first, &second, &second] {
                assert_eq!(waiting.as_mut().poll(&mut Context::from_waker(waker)), Poll::Pending);
            }
            assert_eq!(wakers.lock().len(), 1);
            wakers.wake();
            assert_eq!(woken.each_ref().map(|woken| woken.0.load(Ordering::Relaxed)), [0, 1]);
            assert_eq!(waiting.as_mut().poll(&mut Context::from_waker(&second)), Poll::Pending);
            has_come.store(true, Ordering::Relaxed);
            assert_eq!(waiting.as_mut().poll(&mut Context::from_waker(&second)), Poll::Ready(7));
        }
        assert!(wakers.lock().is_empty());
    }

    #[test]
    fn what_waits_in_the_task_of_a_connection_is_registered_once() {
        let wakers = Arc::new(Wakers::default());
        let of_task = OfTask::new(&wakers);
        let woken = [Arc::new(Woken::default()), Arc::new(Woken::default())];
        let [own, other] = woken.clone().map(Waker::from);
        for _ in 0..3 {
            let mut waiting = pin!(wakers.until(Some(&of_task), || None::<()>));
            assert_eq!(waiting.as_mut().poll(&mut Context::from_waker(&own)), Poll::Pending);
            assert_eq!(wakers.lock().len(), 1);
        }
        {
            let mut elsewhere = pin!(wakers.until(Some(&of_task), || None::<()>));
            assert_eq!(elsewhere.as_mut().poll(&mut Context::from_waker(&other)), Poll::Pending);
            wakers.wake();
        }
        assert_eq!(woken.map(|woken| woken.0.load(Ordering::Relaxed)), [1, 1]);
        drop(of_task);
        assert!(wakers.lock().is_empty());
    }
}
