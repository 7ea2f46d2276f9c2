package dispatch

import (
	"slices"
	"time"
)

// lane holds the deliveries of one key, in the order of their acceptance.
type lane struct {
	waiting []queued
	active  identity // of the delivery that is being handled
	driven  bool
}

// queued is a delivery the broker is told about while it waits its turn.
type queued struct {
	delivery      *taken
	stopExtending func()
}

// kept is a delivery that stays here between its attempts, so that nothing
// overtakes it.
type kept struct {
	*taken
	again bool
	pause time.Duration
	wake  chan struct{} // ends the pause
}

// Retry is done by the lane and not by the broker.
func (k *kept) Retry(pause time.Duration) error {
	k.again, k.pause = true, pause
	return nil
}

// Recall ends the pause of the lane.
func (k *kept) Recall() func() error {
	wake := k.wake
	return func() error {
		select {
		case wake <- struct{}{}:
		default:
		}
		return nil
	}
}

// ackWaits is a little more than how many ExtendEvery make up the broker's ack
// wait.
const ackWaits = 4

// awaitRedelivery waits, before the first fetch of an ordered subscription, until
// the broker offers again what a dispatcher that died had fetched, and has lanes
// begin when all of that is here: it comes in any order, and new events would
// overtake it.
func (r *runner) awaitRedelivery() {
	sub, consumer := r.current()
	if sub.OrderBy == "" {
		return
	}
	info, err := consumer.Info(r.ctx)
	if err == nil && info.Unacknowledged == 0 {
		return
	}
	r.wait(ackWaits * r.d.config.ExtendEvery)
	if err != nil || info.Unacknowledged > uint64(sub.MaxInFlight) {
		return // how much there is to come is not known, or it does not fit
	}
	r.mu.Lock()
	r.gathering = int(info.Unacknowledged)
	r.mu.Unlock()
	r.d.work.Go(func() { // some of it may never come: it was acknowledged after all
		r.wait(ackWaits * r.d.config.ExtendEvery)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.drive()
	})
}

// drive lets lanes begin. Call it with mu held.
func (r *runner) drive() {
	r.gathering = 0
	for key, l := range r.lanes {
		r.begin(key, l)
	}
}

// begin lets a lane begin, unless others must come first. Call it with mu held.
func (r *runner) begin(key string, l *lane) {
	if r.gathering > 0 || l.driven {
		return
	}
	l.driven = true
	r.d.work.Go(func() { r.follow(key, l) })
}

// enqueue puts a delivery into its lane, at its place. Call it with mu held.
func (r *runner) enqueue(key string, d *taken) {
	l, ok := r.lanes[key]
	if !ok {
		l = &lane{}
		r.lanes[key] = l
	}
	if r.gathering > 0 {
		if r.gathering--; r.gathering == 0 {
			defer r.drive()
		}
	}
	if l.active == d.id { // the broker was away, and offers it again
		r.drop(d)
		return
	}
	at := slices.IndexFunc(l.waiting, func(q queued) bool { return q.delivery.id.sequence >= d.id.sequence })
	switch {
	case at < 0:
		at = len(l.waiting)
	case l.waiting[at].delivery.id == d.id:
		before := l.waiting[at] // the broker knows the later one
		before.stopExtending()
		l.waiting[at] = queued{delivery: d, stopExtending: r.extend(d)}
		r.drop(before.delivery)
		return
	}
	l.waiting = slices.Insert(l.waiting, at, queued{delivery: d, stopExtending: r.extend(d)})
	r.begin(key, l)
}

// drop forgets a delivery of which there is another. Call it with mu held.
func (r *runner) drop(d *taken) {
	r.inFlight--
	r.ledger.leave(d.id, false)
	r.d.work.Go(func() { r.account.release(d.bytes) })
	r.signal()
}

// follow handles the deliveries of a lane one after another until it is empty.
func (r *runner) follow(key string, l *lane) {
	for {
		r.mu.Lock()
		if len(l.waiting) == 0 {
			delete(r.lanes, key)
			r.mu.Unlock()
			return
		}
		next := l.waiting[0]
		l.waiting, l.active = l.waiting[1:], next.delivery.id
		r.mu.Unlock()
		done := r.untilDone(next.delivery)
		next.stopExtending()
		r.finish(next.delivery, done)
	}
}

// untilDone handles one delivery until it is done with. When the runner ends, the
// delivery is given back.
func (r *runner) untilDone(d *taken) (done bool) {
	k := &kept{taken: d, wake: make(chan struct{}, 1)}
	for r.ctx.Err() == nil {
		sub, _ := r.current()
		k.again = false
		done = r.handle(&sub, k)
		if !k.again {
			return done
		}
		timer := time.NewTimer(k.pause)
		select {
		case <-timer.C:
		case <-k.wake:
		case <-r.ctx.Done():
		}
		timer.Stop()
	}
	r.told("give back", d.Retry(0))
	return false
}
