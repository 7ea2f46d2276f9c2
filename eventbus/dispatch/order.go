package dispatch

import "time"

// lane holds the deliveries of one key, in order.
type lane struct{ waiting []queued }

// held is a delivery that stays here between its attempts, so that nothing
// overtakes it.
type held struct {
	*taken
	attempt int
	again   bool
	pause   time.Duration
}

func (h *held) Attempt() int { return h.attempt }

// Retry is done by the lane and not by the broker.
func (h *held) Retry(pause time.Duration) error {
	h.again, h.pause = true, pause
	return nil
}

// settle waits, before the first fetch of an ordered subscription, until the
// broker offers again what a dispatcher that died had fetched: new events would
// overtake those.
func (r *runner) settle() {
	sub, consumer := r.current()
	if sub.OrderBy == "" {
		return
	}
	info, err := consumer.Info(r.ctx)
	if err == nil && info.Unacknowledged == 0 {
		return
	}
	r.wait(ackWaits * r.d.config.ExtendEvery)
}

// ackWaits is a little more than how many ExtendEvery make up the broker's ack
// wait.
const ackWaits = 4

// wait returns false when the runner ends meanwhile.
func (r *runner) wait(pause time.Duration) bool {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.ctx.Done():
		return false
	}
}

// queue puts a delivery at the end of its lane. Call it with mu held.
func (r *runner) queue(key string, d *taken) {
	q := queued{delivery: d, stopExtending: r.extend(d)}
	if l, ok := r.lanes[key]; ok {
		l.waiting = append(l.waiting, q)
		return
	}
	l := &lane{waiting: []queued{q}}
	r.lanes[key] = l
	r.d.work.Go(func() { r.drive(key, l) })
}

// queued is a delivery the broker is told about while it waits its turn.
type queued struct {
	delivery      *taken
	stopExtending func()
}

// drive pushes the deliveries of a lane one after another until it is empty.
func (r *runner) drive(key string, l *lane) {
	for {
		r.mu.Lock()
		if len(l.waiting) == 0 {
			delete(r.lanes, key)
			r.mu.Unlock()
			return
		}
		next := l.waiting[0]
		l.waiting = l.waiting[1:]
		r.mu.Unlock()
		done := r.insist(next.delivery)
		next.stopExtending()
		r.finish(next.delivery, done)
	}
}

// insist attempts one delivery until it is done with. When the runner ends, the
// delivery is given back.
func (r *runner) insist(d *taken) (done bool) {
	h := &held{taken: d, attempt: d.Attempt()}
	for r.ctx.Err() == nil {
		sub, _ := r.current()
		if sub.Hold && time.Now().Before(sub.expires(d.Stored())) { // no attempt: wait for what comes
			r.wait(brokerPause)
			continue
		}
		h.again = false
		idle := r.idle(d)
		done = r.handle(&sub, h)
		if !h.again {
			return done
		}
		if r.wait(h.pause) && r.idle(d) == idle {
			h.attempt++
		}
	}
	r.answer("give back", d.Retry(0))
	return false
}
