//! The life of the active slot, whatever serves its traffic: it warms up, serves, hands over, lets its connections end.
//!
//! ```text
//! warm ──▶ serve ──▶ retire ──▶ begin anew as a standby, or leave
//!   │        ▲          │
//!   │        └──────────┘  the slot that took over has ended already
//!   └──▶ begin anew: the active slot goes on without us
//! ```
//!
//! No step leaves a moment in which nobody accepts: the one that takes over serves before the other stops.

use super::report::Situation;
use super::serving::{Relieved, Slot};
use super::succession::{self, Succession, other};
use super::traffic::{Standing, Traffic};
use super::{DrainRequest, End, RunError};
use crate::slots::active::{Active, HandOver, Refusal, Successor};
use crate::slots::desk::{self, Phase};
use crate::slots::lock::{Lock, lock_within, try_lock};
use crate::slots::sockets::Sockets;
use crate::slots::standby::{Event, Standby};
use crate::slots::{Folder, SlotError};
use leno_runtime::http::Health;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{oneshot, watch};
use tokio_util::sync::DropGuard;

/// How long the other slot may hold its lock after it was told that this one serves.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
/// A process that ends lets go of its connection and of its lock within this time.
const DEATH_LIMIT: Duration = Duration::from_millis(500);
/// How long the standby may take to serve, when this slot leaves.
const HAND_OVER_LIMIT: Duration = Duration::from_secs(15);
/// The same when the other slot should serve, and this one has time.
const SUCCESSION_LIMIT: Duration = Duration::from_secs(20);
/// The same after SIGTERM, when the kubelet's patience is shorter.
const LATE_HAND_OVER_LIMIT: Duration = Duration::from_secs(2);
/// How long a slot that is to leave, and has nobody to hand over to, waits for somebody: where the kubelet replaces both slots, the
/// other one is back before long. In a pod that goes it is there and says that it leaves as well.
const NEWCOMER_LIMIT: Duration = Duration::from_secs(3);
/// How long a connection without a request is kept when the pod goes: the kubelet waits for it, and before long there is no app to
/// answer a request that comes on it.
const LEAVE_IDLE: Duration = Duration::from_secs(1);
/// The same in a hand-over, where nobody waits: the next request finds it open, and its answer says that it ends. One that is closed
/// while a request is on its way to it is a request lost.
const SUCCESSION_IDLE: Duration = Duration::from_secs(15);
/// How often the standby that takes over says what it waits for.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// How often it is looked whether the slot that has taken over lives.
const WATCH_INTERVAL: Duration = Duration::from_millis(50);

/// Opens the servers for people, probes and scrapers, for as long as the guard lives.
pub(crate) type Admin<'a> = &'a dyn Fn(&Sockets) -> Result<DropGuard, SlotError>;

/// How a slot comes to serve.
enum Warm {
    /// It does, and the lock is its own.
    Serves(Lock),
    /// It does not.
    Ends(End),
}

/// What follows a time of serving.
enum Turn {
    /// Nothing.
    Ends(End),
    /// Another one: whoever took over is gone.
    Back(Lock),
}

impl Slot<'_> {
    /// From the first configuration to the end of the last connection: until the process is told to leave, or another slot
    /// has taken over.
    pub(crate) async fn life(
        mut self,
        traffic: &impl Traffic,
        health: &Health,
        admin: Admin<'_>,
    ) -> Result<End, RunError> {
        let Some(relieved) = self.relieved.take() else { return Ok(End::Leave) };
        // While another slot serves, it is the one to ask.
        let mut open = match relieved {
            Relieved::Nobody(_) => Some(admin(self.sockets)?),
            Relieved::Other(_) => None,
        };
        let mut lock = match self.warm(relieved, traffic).await? {
            Warm::Serves(lock) => lock,
            Warm::Ends(end) => return Ok(end),
        };
        let settings = self.settings;
        let mut succession =
            Succession::new(settings.folder.clone(), settings.podinfo.clone(), settings.slot, SystemTime::now());
        loop {
            let opened = match open.take() {
                Some(opened) => opened,
                None => admin(self.sockets)?,
            };
            match self.serve(lock, opened, traffic, health, &mut succession).await? {
                Turn::Ends(end) => return Ok(end),
                Turn::Back(back) if traffic.resume(self.sockets).await => lock = back,
                // A fresh process serves sooner than this one could.
                Turn::Back(_) => return Ok(End::Again),
            }
        }
    }

    /// Until the first configuration is in force, and nobody else serves.
    async fn warm(&mut self, relieved: Relieved, traffic: &impl Traffic) -> Result<Warm, RunError> {
        let (mut held, mut active) = match relieved {
            Relieved::Nobody(lock) => (Some(lock), None),
            Relieved::Other(standby) => (None, Some(standby)),
        };
        let folder = &self.settings.folder;
        let begun = Instant::now();
        let served = traffic.served();
        tokio::pin!(served);
        let mut tell = tokio::time::interval(TELL_INTERVAL);
        loop {
            tokio::select! {
                result = &mut served => match (result, &mut active) {
                    (Ok(()), _) => break,
                    (Err(error), active) => {
                        if let Some(active) = active {
                            active.failed(&error.to_string()).await.ok();
                        }
                        return Err(error);
                    }
                },
                () = self.shutdown.cancelled() => return Ok(Warm::Ends(End::Leave)),
                Some(wish) = self.wishes.recv() => match &mut active {
                    // A wish to leave before anything is served is granted at once: there is nothing to hand over.
                    None => {
                        self.leaving = true;
                        wish.send(()).ok();
                    }
                    Some(active) => {
                        self.phase.send_replace(Phase::Leaving);
                        active.leaving().await.ok();
                        wish.send(()).ok();
                        self.shutdown.cancelled().await;
                        return Ok(Warm::Ends(End::Leave));
                    }
                },
                () = lost(&mut active) => match lock_within(folder, DEATH_LIMIT).await? {
                    Some(lock) => {
                        tracing::warn!("the other slot ended while this one takes over");
                        (held, active) = (Some(lock), None);
                    }
                    None => return Ok(Warm::Ends(give_up(traffic, self.settings.drain_limit).await)),
                },
                _ = tell.tick(), if active.is_some() => if let Some(active) = &mut active {
                    active.warming(&traffic.waits_for()).await.ok();
                },
            }
        }
        tracing::info!(took = ?begun.elapsed(), "the first configuration is in force; serving");
        let lock = match (held, active) {
            (Some(lock), _) => Some(lock),
            (None, Some(mut active)) => {
                let told = active.serving().await.is_ok();
                lock_within(folder, if told { LOCK_LIMIT } else { DEATH_LIMIT }).await?
            }
            (None, None) => None,
        };
        match lock {
            Some(lock) => Ok(Warm::Serves(lock)),
            None => Ok(Warm::Ends(give_up(traffic, self.settings.drain_limit).await)),
        }
    }

    /// Until the process is told to leave, or another slot serves.
    async fn serve(
        &mut self,
        lock: Lock,
        admin: DropGuard,
        traffic: &impl Traffic,
        health: &Health,
        succession: &mut Succession,
    ) -> Result<Turn, RunError> {
        let active = Active::start(&self.settings.folder, lock, self.sockets.try_clone()?)?;
        self.phase.send_replace(if self.leaving { Phase::Leaving } else { Phase::Serving });
        self.begin(succession);
        self.set_ready(health, !self.leaving);
        let mut standing = traffic.standing();
        let mut standby = active.standby();
        let mut look = tokio::time::interval(succession::LOOK_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // A wish to leave that waits for somebody to hand over to, and until when.
        let mut waiting: Option<(DrainRequest, Instant)> = None;
        loop {
            let since = *standby.borrow_and_update();
            if since.is_some()
                && let Some((wish, _)) = waiting.take()
            {
                match active.hand_over(HAND_OVER_LIMIT).await {
                    HandOver::Done(successor) => {
                        return self.retire(successor, admin, traffic, Some(wish), succession).await;
                    }
                    HandOver::Refused(_) => self.stay_to_the_end(wish, traffic, health).await,
                }
                continue;
            }
            let due =
                succession.due(since, Instant::now(), SystemTime::now()).filter(|_| !self.leaving && waiting.is_none());
            let wish = tokio::select! {
                now = turned(&mut standing) => {
                    match now {
                        Standing::Serves => self.set_ready(health, !self.leaving),
                        Standing::Starting => self.set_ready(health, false),
                        Standing::Lost(reason) => return Err(RunError::Engine(reason)),
                    }
                    continue;
                }
                () = self.shutdown.cancelled() => {
                    self.set_ready(health, false);
                    self.tell(|situation| situation.draining = true);
                    let limit = LATE_HAND_OVER_LIMIT;
                    // An attempt that was begun before this one may still hold it up.
                    let handed_over = !self.leaving
                        && tokio::time::timeout(limit * 2, active.hand_over(limit))
                            .await
                            .is_ok_and(|result| result.refusal().is_none());
                    tracing::info!(handed_over, connections = traffic.connections().await, "leaving");
                    drop(admin);
                    drop(active);
                    traffic.stop_accepting().await;
                    traffic.drain(self.settings.drain_limit, LEAVE_IDLE).await;
                    return Ok(Turn::Ends(End::Leave));
                }
                Some(wish) = self.wishes.recv(), if waiting.is_none() => match active.hand_over(HAND_OVER_LIMIT).await {
                    HandOver::Done(successor) => {
                        return self.retire(successor, admin, traffic, Some(wish), succession).await;
                    }
                    HandOver::Refused(Refusal::Nobody) if !self.leaving => {
                        tracing::info!(limit = ?NEWCOMER_LIMIT, "nobody to hand over to; waiting for the other slot");
                        traffic.ask_to_leave(SUCCESSION_IDLE).await;
                        waiting = Some((wish, Instant::now() + NEWCOMER_LIMIT));
                        continue;
                    }
                    HandOver::Refused(_) => wish,
                },
                () = at(waiting.as_ref().map(|(_, end)| *end)) => match waiting.take() {
                    Some((wish, _)) => wish,
                    None => continue,
                },
                () = at(due) => {
                    tracing::info!("the other slot should serve; handing over");
                    match self.hand_over_as_asked(&active, succession).await {
                        (HandOver::Done(successor), wish) => {
                            return self.retire(successor, admin, traffic, wish, succession).await;
                        }
                        (HandOver::Refused(_), Some(wish)) => wish,
                        (HandOver::Refused(_), None) => continue,
                    }
                }
                _ = look.tick() => {
                    succession.look();
                    self.tell_failure(succession);
                    continue;
                }
                Ok(()) = standby.changed() => continue,
            };
            self.stay_to_the_end(wish, traffic, health).await;
        }
    }

    /// The pod goes: nothing may be refused while the app still accepts. Not ready, and serving on.
    async fn stay_to_the_end(&mut self, wish: DrainRequest, traffic: &impl Traffic, health: &Health) {
        tracing::info!("nobody to hand over to; serving until the end of the pod");
        self.phase.send_replace(Phase::Leaving);
        self.leaving = true;
        self.set_ready(health, false);
        self.tell(|situation| situation.draining = true);
        // When the app has ended, clients must be elsewhere.
        traffic.ask_to_leave(LEAVE_IDLE).await;
        wish.send(()).ok();
    }

    /// What is reported of a slot that begins to serve.
    fn begin(&self, succession: &Succession) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        self.tell(|situation| {
            if situation.serving_since_ms == 0 {
                situation.serving_since_ms = now;
            }
            situation.draining = self.leaving;
        });
        self.tell_failure(succession);
    }

    fn set_ready(&self, health: &Health, ready: bool) {
        health.set_ready(ready);
        self.tell(|situation| situation.ready = ready);
    }

    fn tell_failure(&self, succession: &Succession) {
        if self.situation.borrow().hand_over_failure != succession.failure() {
            self.tell(|situation| situation.hand_over_failure = succession.failure().to_owned());
        }
    }

    /// Changes what is reported, which goes out at once when it is another thing.
    fn tell(&self, change: impl FnOnce(&mut Situation)) {
        self.situation.send_if_modified(|situation| {
            let before = situation.clone();
            change(situation);
            *situation != before
        });
    }

    /// Hands over because the other slot should serve. A wish to leave that comes meanwhile is given back; a signal shortens
    /// the wait.
    async fn hand_over_as_asked(
        &mut self,
        active: &Active,
        succession: &mut Succession,
    ) -> (HandOver, Option<DrainRequest>) {
        let mut wish = None;
        let handing = active.hand_over(SUCCESSION_LIMIT);
        tokio::pin!(handing);
        let late = async {
            self.shutdown.cancelled().await;
            tokio::time::sleep(LATE_HAND_OVER_LIMIT).await;
        };
        tokio::pin!(late);
        let result = loop {
            tokio::select! {
                result = &mut handing => break result,
                () = &mut late => break HandOver::Refused(Refusal::Leaving),
                Some(asked) = self.wishes.recv(), if wish.is_none() => wish = Some(asked),
            }
        };
        match &result {
            // Nothing was tried.
            HandOver::Done(_) | HandOver::Refused(Refusal::Nobody | Refusal::Leaving) => {}
            HandOver::Refused(refusal @ (Refusal::Late { .. } | Refusal::Ended(_))) => {
                let reason = format!("slot {} does not serve: {refusal}", other(self.settings.slot));
                succession.failed(&reason, SystemTime::now());
            }
        }
        (result, wish)
    }

    /// After the other slot has taken over: lets open connections end, and watches over the other one meanwhile.
    async fn retire(
        &mut self,
        successor: Successor,
        admin: DropGuard,
        traffic: &impl Traffic,
        mut wish: Option<DrainRequest>,
        succession: &mut Succession,
    ) -> Result<Turn, RunError> {
        self.phase.send_replace(Phase::Leaving);
        self.tell(|situation| (situation.ready, situation.draining) = (false, true));
        drop(admin);
        tracing::info!(connections = traffic.connections().await, "the other slot serves; draining");
        traffic.stop_accepting().await;
        let draining = traffic.drain(self.settings.drain_limit, SUCCESSION_IDLE);
        tokio::pin!(draining);
        let (settles, mut settled) = oneshot::channel();
        let successor = ends(successor, &self.settings.folder, settles);
        tokio::pin!(successor);
        // Where both are asked to leave it is the pod that goes, and its app with it.
        let pod_goes = desk::leaves(&self.settings.folder, other(self.settings.slot));
        tokio::pin!(pod_goes);
        let mut is_told = false;
        // A slot that begins anew takes the lock where nobody has it: the other one must have it first.
        let (mut is_drained, mut is_settled, mut is_over) = (false, false, false);
        while !(is_drained && is_settled) {
            tokio::select! {
                () = &mut draining, if !is_drained => is_drained = true,
                _ = &mut settled, if !is_settled => is_settled = true,
                () = &mut pod_goes, if !is_told => {
                    is_told = true;
                    traffic.ask_to_leave(LEAVE_IDLE).await;
                }
                () = self.shutdown.cancelled(), if wish.is_some() => break,
                // The kubelet is about to end this process.
                Some(asked) = self.wishes.recv(), if wish.is_none() => wish = Some(asked),
                lock = &mut successor, if !is_over => {
                    // One that is to end has nothing to go back to.
                    if wish.is_some() || self.shutdown.is_cancelled() {
                        is_over = true;
                        continue;
                    }
                    let reason = format!("slot {} ended soon after it had taken over", other(self.settings.slot));
                    succession.failed(&reason, SystemTime::now());
                    return Ok(Turn::Back(lock?));
                }
            }
        }
        if let Some(wish) = wish {
            wish.send(()).ok();
            self.shutdown.cancelled().await;
        }
        Ok(Turn::Ends(if self.shutdown.is_cancelled() { End::Leave } else { End::Again }))
    }
}

/// The active slot goes on without us. What was accepted meanwhile is served to its end.
async fn give_up(traffic: &impl Traffic, limit: Duration) -> End {
    tracing::warn!("the other slot goes on serving; beginning anew as its standby");
    traffic.stop_accepting().await;
    traffic.drain(limit, SUCCESSION_IDLE).await;
    End::Again
}

/// Resolves with the lock when the slot that has taken over has ended. To it this one is a standby that is leaving.
/// `settles` tells when it has the lock.
async fn ends(mut successor: Successor, folder: &Folder, settles: oneshot::Sender<()>) -> Result<Lock, SlotError> {
    successor.settled().await;
    settles.send(()).ok();
    // From now on it has the lock for as long as it lives.
    loop {
        if let Some(lock) = try_lock(folder)? {
            return Ok(lock);
        }
        if let Ok((mut active, sockets)) = Standby::connect(folder) {
            drop(sockets);
            active.leaving().await.ok();
            while active.event().await != Event::Lost {}
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

/// Resolves when the connection with the active slot ends; never, when there is none.
async fn lost(active: &mut Option<Standby>) {
    match active {
        Some(active) => while active.event().await != Event::Lost {},
        None => std::future::pending().await,
    }
}

/// Resolves at that time; never, when there is none.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// The standing, whenever it is another one; never, when it cannot change.
async fn turned(standing: &mut watch::Receiver<Standing>) -> Standing {
    match standing.changed().await {
        Ok(()) => standing.borrow_and_update().clone(),
        Err(_) => std::future::pending().await,
    }
}
