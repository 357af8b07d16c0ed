package registry

import (
	"math"
	"time"
)

// Artifact is the files of one model at one resolved revision on local disk, verified.
type Artifact struct {
	Path     string    `json:"path"`     // a file, or the folder
	Revision string    `json:"revision"` // the commit it resolved to, or a fingerprint
	Files    []File    `json:"files"`
	Bytes    int64     `json:"bytes"`
	Facts    Facts     `json:"facts"`
	At       time.Time `json:"at"`
	// Tokenizer is the one that tokenizer_path names in another place; nil when it is the model's own or a folder of this
	// machine.
	Tokenizer *Companion `json:"tokenizer,omitempty"`
}

// Companion is files of another place that belong to a model.
type Companion struct {
	Path     string `json:"source_path"`      // as a source_path of the model's source
	Revision string `json:"revision"`         // the exact one
	Folder   string `json:"folder,omitempty"` // where it lies, once it is on this machine
	Files    []File `json:"files"`
	Bytes    int64  `json:"bytes"`
}

// File is one file of a snapshot or an artifact. Path is relative to the artifact's folder, with slashes.
type File struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
	ETag   string `json:"etag,omitempty"`
	// Unsummed: its source tells no sum of the content, so that a fetch could hold only size and ETag against it.
	Unsummed bool `json:"unsummed,omitempty"`
}

// Unsummed counts the files of which a fetch could check only size and ETag.
func Unsummed(files []File) int {
	n := 0
	for _, f := range files {
		if f.Unsummed {
			n++
		}
	}
	return n
}

// Facts are what the headers of the weights say. Zero values mean unknown.
type Facts struct {
	Format           Format `json:"format,omitempty"`
	Architecture     string `json:"architecture,omitempty"`
	Name             string `json:"name,omitempty"`
	Parameters       int64  `json:"parameters,omitempty"`        // true ones: those packed into one element are counted singly
	ActiveParameters int64  `json:"active_parameters,omitempty"` // that one token passes through, of a mixture of experts
	// EdgeParameters are those of the table of tokens and of the head over them, which quantisation while loading leaves as they are.
	EdgeParameters int64  `json:"edge_parameters,omitempty"`
	WeightBytes    int64  `json:"weight_bytes,omitempty"`
	DType          string `json:"dtype,omitempty"` // the one that holds most bytes: bf16, q4_1, int4
	Quantization   string `json:"quantization,omitempty"`
	ContextLength  int    `json:"context_length,omitempty"` // that the model was trained for, in tokens
	Layers         int    `json:"layers,omitempty"`
	KVLayers       int    `json:"kv_layers,omitempty"` // of Layers, those that keep keys and values; 0 all of them
	KVHeads        int    `json:"kv_heads,omitempty"`
	KeyLength      int    `json:"key_length,omitempty"`   // per head
	ValueLength    int    `json:"value_length,omitempty"` // per head
	// KVLatent is, with latent attention (MLA), the elements that a layer keeps for each token in place of the keys and
	// values of its heads: kv_lora_rank and the rotary key. 0 without.
	KVLatent     int `json:"kv_latent,omitempty"`
	Window       int `json:"window,omitempty"`        // sliding window, in tokens; 0 none
	WindowLayers int `json:"window_layers,omitempty"` // of those that keep keys and values, those that see only the window
	// KVGroups says it layer by layer where the numbers above cannot; see Cache.
	KVGroups []KVGroup `json:"kv_groups,omitempty"`
	// StateBytes is what the layers of linear attention, of a state space or of short convolutions keep for each
	// sequence, however long it is, in 32-bit elements.
	StateBytes   int64    `json:"state_bytes,omitempty"`
	Embedding    bool     `json:"embedding,omitempty"` // an encoder: answers embeddings, not chat
	Vision       bool     `json:"vision,omitempty"`    // takes images, too
	ChatTemplate bool     `json:"chat_template,omitempty"`
	Tokenizer    bool     `json:"tokenizer,omitempty"`
	Licence      string   `json:"licence,omitempty"`
	Gated        bool     `json:"gated,omitempty"`   // its source gives it only to those who were let in
	Code         bool     `json:"code,omitempty"`    // carries Python that only trust_remote_code runs
	Pickles      bool     `json:"pickles,omitempty"` // weights are pickles
	Notes        []string `json:"notes,omitempty"`
}

// KVGroup is a number of layers whose caches have one shape.
type KVGroup struct {
	Layers int `json:"layers"`
	Heads  int `json:"heads"`            // of keys and values; 1 with latent attention
	Key    int `json:"key"`              // elements per head and token
	Value  int `json:"value"`            // elements per head and token; 0 with latent attention
	Window int `json:"window,omitempty"` // tokens that are kept; 0 all
}

// Bytes returns what the group keeps of n tokens at elem bytes per element; what would not fit an int64 is
// math.MaxInt64.
func (g KVGroup) Bytes(n int, elem int64) int64 {
	if g.Layers <= 0 || g.Heads <= 0 || g.Key < 0 || g.Value < 0 || n <= 0 || elem <= 0 {
		return 0
	}
	if g.Window > 0 {
		n = min(n, g.Window)
	}
	if float64(g.Layers)*float64(g.Heads)*(float64(g.Key)+float64(g.Value))*float64(n)*float64(elem) >= math.MaxInt64/2 {
		return math.MaxInt64
	}
	return int64(g.Layers) * int64(g.Heads) * int64(g.Key+g.Value) * int64(n) * elem
}

// Cache returns the layers that keep something of each token, in groups of one shape: KVGroups, or what follows from
// the other facts. It is nil when they do not say enough.
func (f Facts) Cache() []KVGroup {
	if len(f.KVGroups) > 0 {
		return f.KVGroups
	}
	layers := f.Layers
	if f.KVLayers > 0 {
		layers = min(f.KVLayers, f.Layers)
	}
	g := KVGroup{Layers: layers, Heads: f.KVHeads, Key: f.KeyLength, Value: f.ValueLength}
	if f.KVLatent > 0 {
		g.Heads, g.Key, g.Value = 1, f.KVLatent, 0
	}
	if g.Layers <= 0 || g.Heads <= 0 || g.Key < 0 || g.Value < 0 {
		return nil
	}
	windowed := g
	windowed.Layers, windowed.Window = min(max(f.WindowLayers, 0), g.Layers), f.Window
	if windowed.Layers == 0 || f.Window <= 0 {
		return []KVGroup{g}
	}
	g.Layers -= windowed.Layers
	if g.Layers == 0 {
		return []KVGroup{windowed}
	}
	return []KVGroup{g, windowed}
}

// KVBytes returns the bytes of the key/value cache of one sequence of n tokens at elem bytes per element (2 for f16):
// the sum over Cache of layers·min(n, window)·heads·(key+value)·elem. It is 0 when the facts do not say enough. An
// engine that keeps full caches for windowed layers, or that does not know latent attention, needs more. StateBytes
// are not in it.
//
// Where it comes from: grouped-query attention keeps kv_heads keys and values for each token and layer (arXiv:2305.13245,
// section 2); multi-head and multi-query attention are its ends. Latent attention keeps one vector of kv_lora_rank and
// one rotary key shared by all heads (arXiv:2405.04434, section 2.1). A layer with a sliding window keeps no more than
// the window (arXiv:2310.06825, section 2). Layers of a state space or linear attention keep nothing of each token
// (arXiv:2403.19887, section 3.1).
//
// The facts come from a file's header and may be nonsense: what would not fit an int64 is math.MaxInt64, which no
// device has.
func (f Facts) KVBytes(n int, elem int64) int64 {
	var sum int64
	for _, g := range f.Cache() {
		b := g.Bytes(n, elem)
		if b > math.MaxInt64/2-sum {
			return math.MaxInt64
		}
		sum += b
	}
	return sum
}
