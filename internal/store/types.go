package store

import (
	"log/slog"
	"time"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// Options say where the registry is kept. Only Path is required.
type Options struct {
	Path    string           // the SQLite file
	Logger  *slog.Logger     // nil discards
	Now     func() time.Time // nil is time.Now
	Readers int              // connections that read at once; 0 means 4
}

// ListQuery narrows a list of models. Its zero value lists all of them, DefaultLimit at a time.
type ListQuery struct {
	Q          string   // words that must all occur in id, description, tags or source_path, in any case
	Team       string   // only this team's models
	Teams      []string // only models of these teams; nil is all, empty is none
	Status     registry.Status
	SourceType registry.SourceType
	Limit      int    // 0 is DefaultLimit; at most MaxLimit
	After      string // the Next of the page before
	NoTotal    bool   // Page.Total is not wanted: a search ends where the page does
}

// Limits on a page of models, operations or audit entries.
const (
	DefaultLimit = 50
	MaxLimit     = 500
)

// Listed is a model with what is known of its instance and the status derived from both.
type Listed struct {
	registry.Record
	Runtime registry.Runtime
	Status  registry.Status
}

// Page is one page of models.
type Page struct {
	Items  []Listed
	Next   string // model_id to pass as After; "" at the end
	Total  int    // how many models match, on all pages; 0 with NoTotal
	Capped bool   // a search has more hits than Total: the counting ended at a thousand
}

// PutOptions say how models are to be written.
type PutOptions struct {
	Actor     string // whose change it is
	Persist   bool   // false: gone when the store is next opened, or back to what was there before
	IfVersion int64  // >0: the model must exist at this version
	IfAbsent  bool   // the model must not exist
	// Registration is set when not "". Otherwise a model keeps the one it has, and a new one is active.
	Registration registry.RegistrationState
	ToManifest   bool // also put into the manifest outbox, in the same transaction
	// Audit, when not nil, is appended to the audit in the same transaction: a change and who made it are one write.
	Audit *registry.AuditEntry
}

// ManifestChange is a model whose entry in the manifest file has to be written again, or removed.
type ManifestChange struct {
	Seq     int64
	ModelID string
	Deleted bool
}

// OperationQuery narrows a list of operations, newest first. Its zero value lists all, DefaultLimit at a time.
type OperationQuery struct {
	Subject string
	Kind    registry.OperationKind
	State   registry.OperationState
	Limit   int    // 0 is DefaultLimit; at most MaxLimit
	After   string // the next of the page before: the id of its last operation
}
