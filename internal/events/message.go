package events

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"sync"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Message is one event on its way to the readers. All readers share the same Message, so it must not be changed.
type Message struct {
	registry.Event

	id    string // "" for samples: they cannot be asked for again
	order uint64 // place among events and samples together
	size  int    // bytes it is counted with

	frameOnce sync.Once
	frame     []byte
}

// ID is what a client sends back as Last-Event-ID to go on behind this message. It is empty for samples, which leave
// a client's position where it was.
func (m *Message) ID() string { return m.id }

// Frame returns the message as one frame of server-sent events: id (not for samples), event (the kind) and data (the
// JSON of registry.Event on one line). It is rendered once for all readers; do not change the bytes.
func (m *Message) Frame() []byte {
	m.frameOnce.Do(func() { m.frame = RenderFrame(m.id, m.Event) })
	return m.frame
}

// RenderFrame writes an event as one frame of server-sent events; id may be empty.
func RenderFrame(id string, e registry.Event) []byte {
	data, err := json.Marshal(e)
	if err != nil {
		// The body was marshalled by Publish, so only a time outside of the years 0 to 9999 can lead here. A frame with
		// the kind alone still tells the client to look.
		data, _ = json.Marshal(registry.Event{Seq: e.Seq, Kind: e.Kind, Subject: e.Subject})
	}
	var b bytes.Buffer
	b.Grow(len(data) + len(id) + len(e.Kind) + len("id: \nevent: \ndata: \n\n"))
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	b.WriteString("event: " + string(e.Kind) + "\ndata: ")
	b.Write(data)
	b.WriteString("\n\n")
	return b.Bytes()
}

// PositionFrame returns a frame of server-sent events that carries an id and nothing else. A browser remembers the id
// and shows no event. Sent first, it lets a client that is cut off before its first event go on without a gap.
func PositionFrame(id string) []byte { return []byte("id: " + id + "\n\n") }

// FormatID makes the id of an event on the wire: the run of the server and the sequence number within it.
func FormatID(epoch string, seq uint64) string { return epoch + "-" + strconv.FormatUint(seq, 10) }

// ParseID is the inverse of FormatID. ok is false for anything that FormatID did not make.
func ParseID(id string) (epoch string, seq uint64, ok bool) {
	i := strings.LastIndexByte(id, '-')
	if i <= 0 || len(id) > 64 {
		return "", 0, false
	}
	seq, err := strconv.ParseUint(id[i+1:], 10, 64)
	if err != nil || FormatID(id[:i], seq) != id {
		return "", 0, false
	}
	return id[:i], seq, true
}
