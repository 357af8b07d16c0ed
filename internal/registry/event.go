package registry

import (
	"encoding/json"
	"time"
)

// EventKind names what an event is about.
type EventKind string

// The kinds of event. Their bodies are the JSON of the type named in the comment.
const (
	EventModelRegistered EventKind = "model.registered" // Record, redacted
	EventModelUpdated    EventKind = "model.updated"    // Record, redacted
	EventModelDeleted    EventKind = "model.deleted"    // {"model_id": …}
	EventModelStatus     EventKind = "model.status"     // ModelStatus
	EventOperation       EventKind = "operation"        // Operation; coalesced while it runs
	EventResources       EventKind = "resources"        // Resources; coalesced, never replayed
	EventEngine          EventKind = "engine"           // EngineStatus
	EventManifest        EventKind = "manifest"         // ManifestStatus
	EventArtifact        EventKind = "artifact"         // ModelArtifact: a model's files were looked up, fetched, changed or deleted
	EventStorage         EventKind = "storage"          // StorageChange; Subject is empty
	EventReset           EventKind = "reset"            // the client was away too long: take a snapshot
)

// EventKinds lists every kind.
var EventKinds = []EventKind{
	EventModelRegistered, EventModelUpdated, EventModelDeleted, EventModelStatus, EventOperation, EventResources,
	EventEngine, EventManifest, EventArtifact, EventStorage, EventReset,
}

// Event is one thing that happened. Seq grows by one for each event that can be replayed and is 0 for coalesced
// samples.
type Event struct {
	Seq     uint64          `json:"seq"`
	Kind    EventKind       `json:"kind"`
	Subject string          `json:"subject,omitempty"` // the model_id or engine
	At      time.Time       `json:"at"`
	Body    json.RawMessage `json:"body"`
}

// ModelStatus is the body of EventModelStatus.
type ModelStatus struct {
	ModelID   string   `json:"model_id"`
	Status    Status   `json:"status"`
	Device    string   `json:"device,omitempty"`
	Engine    string   `json:"engine,omitempty"`
	Percent   int      `json:"percent,omitempty"` // of the load, when it is known
	Operation string   `json:"operation_id,omitempty"`
	Failure   *Failure `json:"failure,omitempty"`
}

// ManifestStatus says how the models file and the registry stand to each other.
type ManifestStatus struct {
	Path    string       `json:"path"`
	Pending int          `json:"pending"` // changes not yet written back
	Err     string       `json:"error,omitempty"`
	Issues  []FieldError `json:"issues,omitempty"` // bad entries, with line and column
	// Refused are changes that the file does not take, by model id and with the reason. They are in the registry and do
	// not count as pending; they are tried again when the model or the file is changed.
	Refused []FieldError `json:"refused,omitempty"`
}
