package registry

import "time"

// ModelArtifact is what is known of a model's files: as they were when somebody last looked, and whether they are on a
// disk of this machine. It is kept with the model, so that its facts are known without a network.
type ModelArtifact struct {
	ModelID    string     `json:"model_id"`
	Ref        string     `json:"-"` // what decided which files these are: of the model as it was when they were looked up
	Source     SourceType `json:"source_type"`
	Path       string     `json:"source_path"`
	Format     Format     `json:"model_format"`
	Requested  string     `json:"requested_revision"`
	Revision   string     `json:"revision,omitempty"` // the exact one that it resolved to
	Root       string     `json:"root,omitempty"`     // a folder once they are on disk, an address before
	Main       string     `json:"main,omitempty"`     // what an engine is given, relative to Root; "" means the folder
	Bytes      int64      `json:"bytes"`
	Files      []File     `json:"files,omitempty"`
	Facts      Facts      `json:"facts"`
	Tokenizer  *Companion `json:"tokenizer,omitempty"`        // that tokenizer_path names in another place
	Fetched    string     `json:"fetched_revision,omitempty"` // the one that is on disk; "" none that we know of
	Loaded     string     `json:"loaded_revision,omitempty"`  // the one that was last given to an engine
	Changed    string     `json:"changed,omitempty"`          // what is different on disk since, in words
	Problem    *Problem   `json:"problem,omitempty"`          // why the last look failed; the rest is of the one before
	ResolvedAt time.Time  `json:"resolved_at,omitzero"`
	FetchedAt  time.Time  `json:"fetched_at,omitzero"`
	UsedAt     time.Time  `json:"used_at,omitzero"` // last given to an engine

	LoadedTokenizer *Companion `json:"-"` // the one that was last given to an engine, without its files; nil for the model's own
}

// Artifact returns it as loaders want it.
func (a ModelArtifact) Artifact() Artifact {
	path := a.Root
	if a.Main != "" {
		path = a.Root + "/" + a.Main
	}
	return Artifact{Path: path, Revision: a.Revision, Files: a.Files, Bytes: a.Bytes, Facts: a.Facts, At: a.ResolvedAt, Tokenizer: a.Tokenizer}
}

// Storage is what occupies the disks.
type Storage struct {
	Artifacts []StoredArtifact `json:"artifacts"`
	Bytes     int64            `json:"bytes"`    // that all of them take together; what several share counts once
	Partial   int64            `json:"partial"`  // of unfinished downloads, on top
	Unused    int64            `json:"unused"`   // that deleting what no model is registered with would free
	Disks     []Disk           `json:"disks"`    // of this machine
	Problems  []string         `json:"problems"` // sources that could not be asked, and why
}

// StorageChange is the body of EventStorage.
type StorageChange struct {
	Action   string     `json:"action"` // deleted, cleaned
	Source   SourceType `json:"source_type"`
	Path     string     `json:"source_path,omitempty"`
	Revision string     `json:"revision,omitempty"`
	Freed    int64      `json:"freed"` // bytes
	Actor    string     `json:"actor"`
	Cause    string     `json:"cause,omitempty"`
}

// RetentionItem is something that the retention policy deletes, or with a dry run would delete.
type RetentionItem struct {
	Source   SourceType `json:"source_type"`
	Path     string     `json:"source_path,omitempty"` // "" for the unfinished downloads of a source
	Revision string     `json:"revision,omitempty"`
	Freed    int64      `json:"freed"`            // bytes; with a dry run those that it would free
	Why      string     `json:"why"`              // in words
	Models   []string   `json:"models,omitempty"` // that are registered with it, with Retention.IncludeUsed
	Error    *Problem   `json:"error,omitempty"`  // it could not be deleted
}

// BandwidthLimits are in bytes per second; 0 is unlimited.
type BandwidthLimits struct {
	Total   int64                `json:"total"`
	Sources map[SourceType]int64 `json:"sources,omitempty"` // of one source; the total holds as well
}

// RootFolders are the folders that local models may be read from.
type RootFolders struct {
	Folders []string `json:"folders"` // empty: any
	From    string   `json:"from"`    // settings, or command line
}

// Secret is a stored secret. Its value is given only to sources and loaders.
type Secret struct {
	Name      string    `json:"name"`
	Team      string    `json:"team"` // whose models may use it; "" every team's
	UpdatedAt time.Time `json:"updated_at"`
	UpdatedBy string    `json:"updated_by"`
	UsedBy    []string  `json:"used_by"` // ids of the models that refer to it and get this one, as far as the caller sees them
}
