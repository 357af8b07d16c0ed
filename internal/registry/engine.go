package registry

// EngineStatus says what an engine can do, and whether it can be used on this host.
type EngineStatus struct {
	Name         string        `json:"name"`
	Title        string        `json:"title"`
	Usable       bool          `json:"usable"`
	Version      string        `json:"version,omitempty"`
	Path         string        `json:"path,omitempty"`    // the program, or the address of a service
	Devices      []Device      `json:"devices,omitempty"` // what this build can use
	Problem      string        `json:"problem,omitempty"` // why it cannot be used
	Pending      bool          `json:"pending,omitempty"` // it was asked a moment ago and has not answered; the API waits for it
	HowToGet     string        `json:"how_to_get,omitempty"`
	Installable  bool          `json:"installable,omitempty"` // llmm engine install NAME works here
	Sources      []SourceType  `json:"sources,omitempty"`
	Formats      []Format      `json:"formats,omitempty"`
	RunsOn       []Device      `json:"runs_on,omitempty"` // what the engine can use at all, with the right build
	APIs         []API         `json:"apis,omitempty"`
	Params       []EngineParam `json:"params,omitempty"` // the custom_loader_params that it understands
	CanSleep     bool          `json:"can_sleep,omitempty"`
	Experimental bool          `json:"experimental,omitempty"`
	OnlyNamed    bool          `json:"only_named,omitempty"` // auto never chooses it
	// Offered is the version that an installation would bring; "" when nothing can be installed from here.
	Offered string `json:"offered,omitempty"`
	// Upgrade is Offered when it is newer than what was installed from here and is used; "" otherwise.
	Upgrade string `json:"upgrade,omitempty"`
	// Installed are the versions that were installed from here, newest first.
	Installed []InstalledEngine `json:"installed,omitempty"`
	Parts     []EnginePart      `json:"parts,omitempty"` // the commands of the engine command
}

// Here reports whether the engine runs models on this machine, and not at a service elsewhere.
func (e EngineStatus) Here() bool {
	for _, s := range e.Sources {
		if s != SourceExternal {
			return true
		}
	}
	return len(e.Sources) == 0
}

// EngineParam is an entry of custom_loader_params that an engine understands.
type EngineParam struct {
	Name string    `json:"name"`
	Kind FieldKind `json:"kind"`
	Opts []string  `json:"options,omitempty"` // with KindEnum
	Help string    `json:"help,omitempty"`
}

// InstalledEngine is one version of an engine that was installed from here.
type InstalledEngine struct {
	Version string `json:"version"`
	Path    string `json:"path"`            // its folder
	Bytes   int64  `json:"bytes,omitempty"` // on the disk; 0 when it was not measured yet
	InUse   bool   `json:"in_use"`          // it is the one that is used
}

// EnginePart is one of several programs that an engine stands for.
type EnginePart struct {
	Name    string   `json:"name"`
	Title   string   `json:"title,omitempty"`
	Program string   `json:"program"`           // as it was found, or as it is called if it was not
	Version string   `json:"version,omitempty"` // what the program says of itself, if it says it
	Problem string   `json:"problem,omitempty"` // why it cannot be run
	Formats []Format `json:"formats,omitempty"`
	Devices []Device `json:"devices,omitempty"`
}

// EngineUse is a model that uses an engine.
type EngineUse struct {
	ModelID string       `json:"model_id"`
	Team    string       `json:"team"`
	State   RuntimeState `json:"state"` // of its instance; RuntimeStopped when it is not loaded
	Named   bool         `json:"named"` // the model asks for this engine; otherwise auto chose it
}

// EngineVerdict says of one engine whether it was chosen for a model, and why.
type EngineVerdict struct {
	Engine string `json:"engine"`
	Title  string `json:"title"`
	Chosen bool   `json:"chosen,omitempty"`
	Would  bool   `json:"would,omitempty"` // it could load the model, and another is preferred
	Why    string `json:"why"`             // in words
}
