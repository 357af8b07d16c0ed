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
}

// File is one file of a snapshot or an artifact. Path is relative to the artifact's folder, with slashes.
type File struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
	ETag   string `json:"etag,omitempty"`
}

// Facts are what the headers of the weights say. Zero values mean unknown.
type Facts struct {
	Format        Format `json:"format,omitempty"`
	Architecture  string `json:"architecture,omitempty"`
	Name          string `json:"name,omitempty"`
	Parameters    int64  `json:"parameters,omitempty"`
	WeightBytes   int64  `json:"weight_bytes,omitempty"`
	DType         string `json:"dtype,omitempty"` // the one that holds most bytes: bf16, q4_1
	Quantization  string `json:"quantization,omitempty"`
	ContextLength int    `json:"context_length,omitempty"` // that the model was trained for, in tokens
	Layers        int    `json:"layers,omitempty"`
	KVHeads       int    `json:"kv_heads,omitempty"`
	KeyLength     int    `json:"key_length,omitempty"`   // per head
	ValueLength   int    `json:"value_length,omitempty"` // per head
	Window        int    `json:"window,omitempty"`       // sliding window, in tokens; 0 none
	// WindowLayers of Layers see only the window.
	WindowLayers int      `json:"window_layers,omitempty"`
	Embedding    bool     `json:"embedding,omitempty"` // an encoder: answers embeddings, not chat
	ChatTemplate bool     `json:"chat_template,omitempty"`
	Tokenizer    bool     `json:"tokenizer,omitempty"`
	Licence      string   `json:"licence,omitempty"`
	Code         bool     `json:"code,omitempty"`    // carries Python that only trust_remote_code runs
	Pickles      bool     `json:"pickles,omitempty"` // weights are pickles
	Notes        []string `json:"notes,omitempty"`
}

// KVBytes returns the bytes of the key/value cache for a context of n tokens at elem bytes per element (2 for
// f16): Σ over layers of min(n, window)·kv_heads·(key_length+value_length)·elem. It is the formula of grouped-query
// and multi-head attention; 0 when the facts do not say enough.
//
// The facts come from a file's header and may be nonsense: what would not fit an int64 is math.MaxInt64, which no
// device has.
func (f Facts) KVBytes(n int, elem int64) int64 {
	if f.Layers <= 0 || f.KVHeads <= 0 || f.KeyLength < 0 || f.ValueLength < 0 || n <= 0 || elem <= 0 {
		return 0
	}
	windowed := min(max(f.WindowLayers, 0), f.Layers)
	tokens := float64(f.Layers-windowed)*float64(n) + float64(windowed)*float64(min(n, max(f.Window, 0)))
	perToken := float64(f.KVHeads) * (float64(f.KeyLength) + float64(f.ValueLength)) * float64(elem)
	if tokens*perToken >= math.MaxInt64/2 {
		return math.MaxInt64
	}
	return (int64(f.Layers-windowed)*int64(n) + int64(windowed)*int64(min(n, max(f.Window, 0)))) *
		int64(f.KVHeads) * int64(f.KeyLength+f.ValueLength) * elem
}
