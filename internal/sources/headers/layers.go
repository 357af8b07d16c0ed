package headers

import (
	"fmt"
	"math"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// maxLayers is more than any model has; the deepest have some 130.
const maxLayers = 4096

const nonsense = "The header's numbers of layers, heads and lengths make no sense together and are not used."

// layer is what one layer keeps of a sequence.
type layer struct {
	heads, key, value int   // of keys and values; no heads: it keeps none
	window            int   // tokens that are kept; 0 all
	state             int64 // elements that are kept however long the sequence is
}

// stack is a model's layers while their description is read.
type stack struct {
	layers []layer
	latent int // elements for each token in place of the heads' keys and values (MLA); 0 without
	absurd bool
}

// newStack returns so many layers of one shape. A number that makes no sense gives none.
func newStack(layers, heads, key, value int) *stack {
	if layers < 0 || layers > maxLayers {
		return &stack{absurd: true}
	}
	return &stack{layers: slices.Repeat([]layer{{heads: heads, key: key, value: value}}, layers)}
}

// recurrent makes a layer one that keeps a state in place of keys and values.
func (s *stack) recurrent(i int, state int64) {
	if i >= 0 && i < len(s.layers) {
		s.layers[i] = layer{state: state}
	}
}

// windowed makes a layer one that sees only the window.
func (s *stack) windowed(i, window int) {
	if i >= 0 && i < len(s.layers) {
		s.layers[i].window = window
	}
}

// share says that the last n layers use the keys and values of earlier ones.
func (s *stack) share(n int) {
	for i := max(len(s.layers)-max(n, 0), 0); i < len(s.layers); i++ {
		s.layers[i].heads = 0
	}
}

// keeps reports whether it is known that a layer keeps something of each token.
func (s *stack) keeps(l layer) bool { return l.heads > 0 && (l.key > 0 || l.value > 0 || s.latent > 0) }

// facts sets the numbers of the cache. Where the layers that keep keys and values are all of one shape, the plain
// numbers say everything; else they tell of the largest and KVGroups says it exactly.
func (s *stack) facts(f *registry.Facts) {
	f.Layers, f.KVLatent = len(s.layers), 0
	f.KVLayers, f.KVHeads, f.KeyLength, f.ValueLength, f.WindowLayers, f.StateBytes = 0, 0, 0, 0, 0, 0
	var state, widest float64
	kept, window := 0, 0
	for _, l := range s.layers {
		state += float64(l.state) * 4
		if !s.keeps(l) {
			continue
		}
		kept++
		if width := float64(l.heads) * (float64(l.key) + float64(l.value)); width > widest {
			widest = width
			f.KVHeads, f.KeyLength, f.ValueLength = l.heads, l.key, l.value
		}
		if l.window > 0 {
			f.WindowLayers++
			window = max(window, l.window)
		}
	}
	if f.WindowLayers > 0 {
		f.Window = window
	}
	if kept < len(s.layers) && kept > 0 {
		f.KVLayers = kept
		f.Notes = append(f.Notes, fmt.Sprintf("%d of %d layers keep no keys and values of their own.", len(s.layers)-kept, len(s.layers)))
	}
	if s.absurd {
		f.Notes = append(f.Notes, nonsense)
	}
	if state > 0 && state < math.MaxInt64/2 {
		f.StateBytes = int64(state)
	}
	if s.latent > 0 && kept > 0 {
		f.KVLatent = s.latent
		f.Notes = append(f.Notes, "Uses latent attention (MLA): an engine that does not support it needs far more cache.")
	}
	if groups := s.groups(); !slices.Equal(groups, f.Cache()) {
		f.KVGroups = groups
	}
}

// groups gathers the layers of one shape, those without a window first and then in the order in which they come.
func (s *stack) groups() []registry.KVGroup {
	var out []registry.KVGroup
	for _, windowed := range []bool{false, true} {
		for _, l := range s.layers {
			if !s.keeps(l) || (l.window > 0) != windowed {
				continue
			}
			g := registry.KVGroup{Layers: 1, Heads: l.heads, Key: l.key, Value: l.value, Window: l.window}
			if s.latent > 0 {
				g.Heads, g.Key, g.Value = 1, s.latent, 0
			}
			same := func(o registry.KVGroup) bool {
				o.Layers = 1
				return o == g
			}
			if i := slices.IndexFunc(out, same); i >= 0 {
				out[i].Layers++
			} else {
				out = append(out, g)
			}
		}
	}
	return out
}

// distrust drops the numbers of a header that would make the size of the cache larger than any machine's memory: they
// are wrong, and multiplying them would overflow.
func distrust(f *registry.Facts) {
	const most = 1 << 56
	tokens := float64(max(f.ContextLength, registry.MaxContext))
	cache := tokens * float64(f.Layers) * float64(f.KVHeads) * (float64(f.KeyLength) + float64(f.ValueLength)) * 8
	for _, g := range f.Cache() {
		cache += tokens * float64(g.Layers) * float64(g.Heads) * (float64(g.Key) + float64(g.Value)) * 8
	}
	if cache <= most && f.StateBytes <= most {
		return
	}
	f.Notes = append(f.Notes, nonsense)
	f.Layers, f.KVLayers, f.KVHeads, f.KeyLength, f.ValueLength, f.KVLatent = 0, 0, 0, 0, 0, 0
	f.WindowLayers, f.StateBytes, f.KVGroups = 0, 0, nil
}
