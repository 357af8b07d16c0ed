package registry

// Verdict is the one word of a plan.
type Verdict string

// The verdicts.
const (
	VerdictFits   Verdict = "fits"             // now
	VerdictEvict  Verdict = "fits_after_evict" // after evicting Plan.Evict
	VerdictWaits  Verdict = "waits"            // the room is promised to or held by others that will not be evicted
	VerdictNever  Verdict = "never"            // larger than any device it may use
	VerdictLoaded Verdict = "loaded"           // already loaded
)

// Plan answers "what would happen if I loaded this now". A dry run and a real load use the same code.
type Plan struct {
	ModelID   string  `json:"model_id"`
	Verdict   Verdict `json:"verdict"`
	Device    string  `json:"device,omitempty"` // cpu, cuda:0; the one chosen, or the one that comes closest
	GPUs      []int   `json:"gpus,omitempty"`
	Engine    string  `json:"engine,omitempty"`
	EngineWhy string  `json:"engine_why,omitempty"`
	// Engines are all of them with why each was chosen or not, in the order in which they are preferred.
	Engines   []EngineVerdict `json:"engines,omitempty"`
	DeviceWhy string          `json:"device_why,omitempty"`
	Needs     Footprint       `json:"needs"`
	Free      int64           `json:"free"`            // bytes on Device that nobody holds and nobody was promised
	Spare     int64           `json:"spare"`           // bytes left on Device after loading; negative when it does not fit
	Evict     []Holder        `json:"evict,omitempty"` // with VerdictEvict, in the order in which they leave
	Shortage  *Shortage       `json:"shortage,omitempty"`
	Sentence  string          `json:"sentence"`          // what matters, in words
	Problem   *Problem        `json:"problem,omitempty"` // why no plan could be made (file missing, engine missing)
}

// Footprint is what a model needs on the device it is loaded on. All in bytes. Given is the user's required_*_mb in
// bytes and is used instead of Estimated when it is not 0.
type Footprint struct {
	Weights   int64  `json:"weights,omitempty"`
	KVCache   int64  `json:"kv_cache,omitempty"`
	Overhead  int64  `json:"overhead,omitempty"`
	Estimated int64  `json:"estimated"` // the sum; 0 when nothing is known
	Given     int64  `json:"given,omitempty"`
	Context   int    `json:"context,omitempty"` // tokens for which KVCache was computed
	Basis     string `json:"basis"`             // where the numbers come from: "given", "gguf header", "file size", "unknown"
}

// Bytes returns what is reserved: Given if there is one, else Estimated.
func (f Footprint) Bytes() int64 {
	if f.Given > 0 {
		return f.Given
	}
	return f.Estimated
}
