package events

import (
	"context"
	"encoding/json"
	"slices"
	"sort"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ErrClosed is what Next returns after the Subscription or the Bus was closed.
var ErrClosed = &registry.Error{Code: registry.CodeUnavailable, Op: "events", Msg: "The stream of events has ended: the server is stopping or the subscription was closed. Connect again."}

// batchBytes bounds the bytes that one Next hands out, so that a reader stuck in the middle of a batch holds little.
const batchBytes = 1 << 20

// Filter narrows a subscription. The zero value lets everything through. A reset always gets through.
type Filter struct {
	Models  []string                  // subjects; empty: all
	Kinds   []registry.EventKind      // empty: all
	Visible func(registry.Event) bool // what the reader may see; nil: all. Called by the reader, never by Publish
}

// Subscription is one reader's position. Next is for one goroutine; Close may be called from any.
type Subscription struct {
	bus     *Bus
	models  map[string]bool // nil: all
	kinds   map[registry.EventKind]bool
	visible func(registry.Event) bool
	start   string
	done    chan struct{}
	once    sync.Once

	place uint64 // order of the newest message that was read or passed over
	reset string // why the next message is a reset; "" when it is none
}

// Subscribe begins to read what happens from now on.
func (b *Bus) Subscribe(f Filter) *Subscription { return b.SubscribeAfter(f, "") }

// SubscribeAfter begins to read behind the event with that id, as a client sends it in Last-Event-ID; "" means from now
// on. If what came after it is no longer known (it is too old, of another run of the server, or not an id at all) the
// first message is an EventReset and the reading goes on from now.
func (b *Bus) SubscribeAfter(f Filter, lastEventID string) *Subscription {
	s := &Subscription{bus: b, visible: f.Visible, done: make(chan struct{})}
	if len(f.Models) > 0 {
		s.models = make(map[string]bool, len(f.Models))
		for _, m := range f.Models {
			s.models[m] = true
		}
	}
	if len(f.Kinds) > 0 {
		s.kinds = make(map[registry.EventKind]bool, len(f.Kinds))
		for _, k := range f.Kinds {
			s.kinds[k] = true
		}
	}

	b.mu.Lock()
	defer b.mu.Unlock()
	b.stats.Subscribers++
	s.start = FormatID(b.epoch, b.seq)
	s.place = b.order
	if lastEventID == "" {
		return s
	}
	epoch, seq, ok := ParseID(lastEventID)
	oldest := b.seq + 1 // the log has oldest … b.seq without a gap
	if b.count > 0 {
		oldest = b.at(0).Seq
	}
	switch {
	case !ok:
		s.reset = "the position that was asked for is not one of this server"
	case epoch != b.epoch || seq > b.seq:
		s.reset = "the server was restarted"
	case seq+1 < oldest:
		s.reset = "you were away for longer than events are kept"
	default:
		s.start = lastEventID
		// Samples made after the event are read again: the reader may not have seen the newest.
		s.place = b.lost // just before the oldest
		if seq >= oldest {
			s.place = b.at(sort.Search(b.count, func(i int) bool { return b.at(i).Seq >= seq })).order
		}
	}
	return s
}

// Start is the id of the position at which the subscription began. Send it with PositionFrame.
func (s *Subscription) Start() string { return s.start }

// Next waits until there is something to read and returns it, in order, at most Options.Queue at once. What is there
// already is returned even when ctx has ended. A reader that fell behind what is kept gets one EventReset instead of
// what it missed and goes on with what is new. Errors are ctx's own and ErrClosed.
func (s *Subscription) Next(ctx context.Context) ([]*Message, error) {
	for {
		select {
		case <-s.done:
			return nil, ErrClosed
		default:
		}
		batch, more, changed := s.take()
		if s.visible != nil {
			batch = slices.DeleteFunc(batch, func(m *Message) bool { return m.Kind != registry.EventReset && !s.visible(m.Event) })
		}
		if len(batch) > 0 {
			return batch, nil
		}
		if more {
			continue
		}
		select {
		case <-s.bus.done: // all is read
			return nil, ErrClosed
		default:
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-s.done:
			return nil, ErrClosed
		case <-s.bus.done:
			// Once more round the loop: something may have been published just before Close.
		}
	}
}

// take reads the next messages that pass kinds and models and moves the place behind them. more says that the batch
// was full; changed is closed when there is something new to take.
func (s *Subscription) take() (batch []*Message, more bool, changed <-chan struct{}) {
	b := s.bus
	b.mu.RLock()
	defer b.mu.RUnlock()
	if s.place < b.lost && s.reset == "" {
		s.reset = "events came faster than you read them"
	}
	if s.reset != "" {
		m := b.resetMessage(s.reset)
		s.reset, s.place = "", b.order
		return []*Message{m}, false, b.changed
	}

	// Both lists are in order; walk them like a merge.
	sample := b.recent.Back()
	if sample != nil && sample.Value.(*Message).order <= s.place {
		sample = nil
	}
	for sample != nil && sample.Prev() != nil && sample.Prev().Value.(*Message).order > s.place {
		sample = sample.Prev()
	}
	size := 0
	for i := b.after(s.place); i < b.count || sample != nil; {
		var m *Message
		if sample != nil && (i == b.count || sample.Value.(*Message).order < b.at(i).order) {
			m, sample = sample.Value.(*Message), sample.Next()
		} else {
			m = b.at(i)
			i++
		}
		if s.wants(m) {
			if len(batch) == b.opts.Queue || (len(batch) > 0 && size+m.size > batchBytes) {
				return batch, true, b.changed
			}
			batch = append(batch, m)
			size += m.size
		}
		s.place = m.order
	}
	s.place = b.order
	return batch, false, b.changed
}

func (s *Subscription) wants(m *Message) bool {
	return (s.kinds == nil || s.kinds[m.Kind]) && (s.models == nil || s.models[m.Subject])
}

// resetMessage makes the message that tells one reader to take a snapshot. Its id is the position from which the reading
// goes on, so that a client that connects again with it is not reset once more.
func (b *Bus) resetMessage(reason string) *Message {
	body, _ := json.Marshal(struct {
		Reason string `json:"reason"`
	}{reason})
	b.resets.Add(1)
	return &Message{
		Event: registry.Event{Seq: b.seq, Kind: registry.EventReset, At: b.opts.Now(), Body: body},
		id:    FormatID(b.epoch, b.seq),
		order: b.order,
	}
}

// Close ends the subscription. It is idempotent and wakes a Next that waits.
func (s *Subscription) Close() {
	s.once.Do(func() {
		close(s.done)
		s.bus.mu.Lock()
		s.bus.stats.Subscribers--
		s.bus.mu.Unlock()
	})
}
