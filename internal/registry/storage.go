package registry

import "time"

// Offer is one of the models that a source holds under one path: a format, and for GGUF a quantisation.
type Offer struct {
	Format Format         `json:"model_format"`
	Label  string         `json:"label"`            // for people: "Q4_K_M", "safetensors"
	Params map[string]any `json:"params,omitempty"` // the custom_loader_params that choose it
	Files  int            `json:"files"`
	Bytes  int64          `json:"bytes"`
}

// Lookup is what is known of a model before any of its weights are fetched.
type Lookup struct {
	Model     Model      `json:"model"`    // what was asked for, with what could be filled in
	Revision  string     `json:"revision"` // the exact one that it resolved to
	Files     []File     `json:"files"`
	Bytes     int64      `json:"bytes"`
	OnDisk    int64      `json:"on_disk"` // of Bytes, those that need not be downloaded any more
	Facts     Facts      `json:"facts"`
	Tokenizer *Companion `json:"tokenizer,omitempty"` // that tokenizer_path names in another place; fetched with the model
	Offers    []Offer    `json:"offers,omitempty"`
	Plan      *Plan      `json:"plan,omitempty"` // what a load would take now
	// Problem is why the rest is not known and a fetch would fail, for a gated model whose files the caller may not have.
	// What stands beside it is what everybody may know.
	Problem  *Problem `json:"problem,omitempty"`
	Requests int      `json:"requests"` // what the look took of the network
	Read     int64    `json:"read"`     // bytes
}

// StoredArtifact is one revision of a model's files on a disk of this machine.
type StoredArtifact struct {
	Source     SourceType `json:"source_type"`
	Path       string     `json:"source_path"` // as a model's source_path
	Revision   string     `json:"revision"`    // the exact one; "" for unfinished downloads that belong to none yet
	Names      []string   `json:"names,omitempty"`
	Folder     string     `json:"folder"` // where it lies
	Files      int        `json:"files"`
	Bytes      int64      `json:"bytes"`                // of all its files
	Own        int64      `json:"own"`                  // of Bytes, those that no other revision uses: what deleting it frees
	Partial    int64      `json:"partial,omitempty"`    // bytes on disk of unfinished downloads
	Incomplete bool       `json:"incomplete,omitempty"` // a fetch of it has not ended yet; the next one goes on with what is here
	Missing    int64      `json:"missing,omitempty"`    // bytes that have not arrived, of an incomplete one
	ModifiedAt time.Time  `json:"modified_at,omitzero"`
	UsedAt     time.Time  `json:"used_at,omitzero"` // last read, where the file system tells

	// The manager fills these in.
	Models []string `json:"models,omitempty"` // the models that are registered with it
	InUse  bool     `json:"in_use,omitempty"` // one of them is loaded, being loaded or being fetched
}

// Retention says what is deleted without being asked for. The zero Retention deletes nothing.
type Retention struct {
	UnusedFor   Duration `json:"unused_for,omitempty"`   // revisions that no model is registered with and nobody used for so long
	PartialFor  Duration `json:"partial_for,omitempty"`  // unfinished downloads that have not grown for so long
	MaxBytes    int64    `json:"max_bytes,omitempty"`    // of all artifacts; the longest unused of those without a model go first
	IncludeUsed bool     `json:"include_used,omitempty"` // also revisions that a registered model uses while it is not loaded
}
