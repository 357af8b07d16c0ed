package registry_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func TestErrorSaysWhatIsKnown(t *testing.T) {
	for want, err := range map[string]error{
		"It broke":                        &registry.Error{Code: registry.CodeInternal, Msg: "It broke", Err: io.EOF},
		"EOF":                             &registry.Error{Code: registry.CodeInternal, Err: io.EOF},
		"busy":                            &registry.Error{Code: registry.CodeBusy},
		"Bad: a is required":              &registry.Error{Msg: "Bad", Fields: []registry.FieldError{{Field: "a", Msg: "is required"}}},
		"Bad: line 3, column 7: a x; b y": &registry.Error{Msg: "Bad", Fields: []registry.FieldError{{Field: "a", Msg: "x", Line: 3, Column: 7}, {Field: "b", Msg: "y"}}},
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err.Error(), want)
		}
	}
}

func TestErrorsKeepTheirCodeAndCause(t *testing.T) {
	err := registry.Errorf(registry.CodeNotFound, "model %q: %w", "a/b", io.ErrUnexpectedEOF)
	wrapped := fmt.Errorf("loading: %w", err)
	if registry.CodeOf(wrapped) != registry.CodeNotFound || !errors.Is(wrapped, io.ErrUnexpectedEOF) {
		t.Errorf("%v lost its code or cause", wrapped)
	}
	if registry.CodeOf(nil) != "" || registry.CodeOf(io.EOF) != registry.CodeInternal {
		t.Error("CodeOf of nil or a foreign error")
	}
	if registry.AsError(wrapped) != err || registry.AsError(nil) != nil {
		t.Error("AsError does not find the error")
	}
	if e := registry.AsError(io.EOF); e.Code != registry.CodeInternal || !errors.Is(e, io.EOF) {
		t.Errorf("AsError of a foreign error is %#v", e)
	}
}

func TestProblemRoundTrip(t *testing.T) {
	want := &registry.Error{
		Code: registry.CodeInsufficientResources, Msg: "No room", Fields: []registry.FieldError{{Field: "a", Msg: "b"}},
		Failure:  &registry.Failure{Kind: registry.FailureOutOfMemory, Msg: "oom", LogTail: []string{"x"}},
		Shortage: &registry.Shortage{Device: "cuda:0", Needed: 3, Free: 1, Short: 2, Total: 4, Holders: []registry.Holder{{ModelID: "m", Bytes: 3}}},
	}
	b, err := json.Marshal(registry.ProblemOf(fmt.Errorf("wrapped: %w", want)))
	if err != nil {
		t.Fatal(err)
	}
	var p registry.Problem
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	var got *registry.Error
	if !errors.As(p.AsError(), &got) {
		t.Fatal("a problem is no Error")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if registry.ProblemOf(nil) != nil || (*registry.Problem)(nil).AsError() != nil {
		t.Error("no error became a problem")
	}
}

func TestSecretNames(t *testing.T) {
	for _, name := range []string{
		"auth_token", "HF_TOKEN", "hf-token", "token", "api_key", "apiKey", "X-Api-Key", "api key", "client_secret", "password",
		"Passwd", "passphrase", "aws_secret_access_key", "accessKey", "private_key", "credentials", "Authorization", "bearer", "Cookie",
	} {
		if !registry.IsSecretName(name) {
			t.Errorf("%q is taken for no secret", name)
		}
	}
	for _, name := range []string{"threads", "max_tokens", "max_new_tokens", "tokenizer", "tokenizer_mode", "n_gpu_layers", "key", "dtype", ""} {
		if registry.IsSecretName(name) {
			t.Errorf("%q is taken for a secret", name)
		}
	}
}

func TestRedaction(t *testing.T) {
	m := registry.Model{CustomLoaderParams: map[string]any{
		"auth_token": "hf_1", "threads": int64(4), "password": int64(1234), "ref_token": "${HF_TOKEN}",
		"sneaky_token": "${A}hf_2${B}", "other_token": "${hf_3 }", "credentials": map[string]any{"user": "hf_4"},
		"headers": map[string]any{"Authorization": "Bearer hf_5", "Accept": "x"},
		"mirrors": []any{map[string]any{"api_key": "hf_6", "url": "u"}, "plain"},
	}}
	before, _ := json.Marshal(m.CustomLoaderParams)
	r := m.Redacted()
	want := map[string]any{
		"auth_token": registry.Redaction, "threads": int64(4), "password": registry.Redaction, "ref_token": "${HF_TOKEN}",
		"sneaky_token": registry.Redaction, "other_token": registry.Redaction, "credentials": registry.Redaction,
		"headers": map[string]any{"Authorization": registry.Redaction, "Accept": "x"},
		"mirrors": []any{map[string]any{"api_key": registry.Redaction, "url": "u"}, "plain"},
	}
	if diff := cmp.Diff(want, r.CustomLoaderParams); diff != "" {
		t.Error(diff)
	}
	if after, _ := json.Marshal(m.CustomLoaderParams); !bytes.Equal(after, before) {
		t.Error("Redacted changed the model it was given")
	}
	if diff := cmp.Diff(m.CustomLoaderParams, registry.KeepSecrets(r.CustomLoaderParams, m.CustomLoaderParams)); diff != "" {
		t.Errorf("what was redacted did not come back: %s", diff)
	}
	if (registry.Model{}).Redacted().CustomLoaderParams != nil || registry.KeepSecrets(nil, want) != nil {
		t.Error("nothing became something")
	}
}

// TestKeepSecretsKeepsOnlyWhatWasThere: edits win, and no secret moves to another place.
func TestKeepSecretsKeepsOnlyWhatWasThere(t *testing.T) {
	stored := map[string]any{"a_token": "old", "b": []any{map[string]any{"token": "one"}, map[string]any{"token": "two"}}}
	got := registry.KeepSecrets(map[string]any{"a_token": "new", "c_token": registry.Redaction, "b": []any{map[string]any{"token": registry.Redaction}}}, stored)
	want := map[string]any{"a_token": "new", "c_token": registry.Redaction, "b": []any{map[string]any{"token": registry.Redaction}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestNoSecretInAnError: wrong input around a secret is told without it.
func TestNoSecretInAnError(t *testing.T) {
	const secret = "hf_abcdef"
	for _, in := range []map[string]any{
		with("custom_loader_params", "auth_token="+secret),
		with("custom_loader_params", []any{secret}),
		with("custom_loader_params", map[string]any{"auth_token": secret + "\x00"}),
		with("custom_loader_params", map[string]any{"auth_token": struct{ s string }{secret}}),
		with("auth_token", secret),
		given(map[string]any{"source_type": "external_service", "source_path": "http://u:" + secret + "@host"}),
		given(map[string]any{"source_type": "s3", "source_path": "s3://u:" + secret + "@bucket"}),
	} {
		_, errs := registry.Decode(in)
		if len(errs) == 0 {
			t.Errorf("%v was accepted", in)
		}
		if s := fmt.Sprint(errs); strings.Contains(s, secret) {
			t.Errorf("the error tells the secret: %s", s)
		}
	}
}

func TestKVBytes(t *testing.T) {
	llama := registry.Facts{Layers: 32, KVHeads: 8, KeyLength: 128, ValueLength: 128}
	mixed := registry.Facts{Layers: 26, KVHeads: 1, KeyLength: 256, ValueLength: 256, Window: 512, WindowLayers: 22}
	hybrid := registry.Facts{Layers: 48, KVLayers: 12, KVHeads: 2, KeyLength: 256, ValueLength: 256, StateBytes: 1 << 20}
	uneven := registry.Facts{Layers: 9, KVGroups: []registry.KVGroup{{Layers: 1, Heads: 4, Key: 512, Value: 512}, {Layers: 5, Heads: 8, Key: 256, Value: 256, Window: 1024}}}
	for _, c := range []struct {
		name  string
		facts registry.Facts
		n     int
		elem  int64
		want  int64
	}{
		{"latent attention: DeepSeek-V3 keeps 70,272 bytes of a token", registry.Facts{Layers: 61, KVHeads: 128, KeyLength: 192, ValueLength: 128, KVLatent: 576}, 1, 2, 70272},
		{"a hybrid: only its attention layers", hybrid, 1000, 2, 1000 * 12 * 2 * 512 * 2},
		{"layer by layer", uneven, 4096, 2, (4096*4*1024 + 5*1024*8*512) * 2},
		{"more KV layers than layers", registry.Facts{Layers: 2, KVLayers: 9, KVHeads: 1, KeyLength: 1, ValueLength: 1}, 10, 1, 2 * 10 * 2},
		{"a group that is nonsense", registry.Facts{KVGroups: []registry.KVGroup{{Layers: -1, Heads: 4, Key: 5}, {Layers: 1, Heads: 1, Key: 1}}}, 10, 1, 10},
		{"groups that overflow", registry.Facts{KVGroups: slices.Repeat([]registry.KVGroup{{Layers: math.MaxInt32, Heads: 1 << 20, Key: 1}}, 300)}, 1 << 10, 1, math.MaxInt64},
		{"Llama 3 8B at 8,192 tokens in f16 is 1 GiB", llama, 8192, 2, 1 << 30},
		{"one token", llama, 1, 2, 32 * 8 * 256 * 2},
		{"q8", llama, 8192, 1, 1 << 29},
		{"window larger than the context", mixed, 100, 2, 26 * 100 * 512 * 2},
		{"sliding window", mixed, 4096, 2, (4*4096 + 22*512) * 512 * 2},
		{"nothing known", registry.Facts{}, 4096, 2, 0},
		{"no heads known", registry.Facts{Layers: 3}, 4096, 2, 0},
		{"no context", llama, 0, 2, 0},
		{"negative context", llama, -1, 2, 0},
		{"nonsense: more window layers than layers", registry.Facts{Layers: 2, KVHeads: 1, KeyLength: 1, ValueLength: 1, Window: 4, WindowLayers: 9}, 10, 1, 2 * 4 * 2},
		{"nonsense: negative", registry.Facts{Layers: -2, KVHeads: 1, KeyLength: 1, ValueLength: 1}, 10, 1, 0},
		{"nonsense: overflow", registry.Facts{Layers: math.MaxInt32, KVHeads: math.MaxInt32, KeyLength: math.MaxInt32, ValueLength: math.MaxInt32}, 1 << 24, 2, math.MaxInt64},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.facts.KVBytes(c.n, c.elem); got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}

// TestKVBytesNeverWraps compares with arithmetic that has no limit.
func TestKVBytesNeverWraps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) int {
			return rapid.IntRange(0, 1<<uint(rapid.IntRange(0, 32).Draw(t, name+" bits"))).Draw(t, name)
		}
		f := registry.Facts{Layers: draw("layers"), KVHeads: draw("heads"), KeyLength: draw("key"), ValueLength: draw("value"), Window: draw("window")}
		f.WindowLayers = rapid.IntRange(0, f.Layers).Draw(t, "window layers")
		n := draw("n")
		mul := func(xs ...int) *big.Int {
			p := big.NewInt(1)
			for _, x := range xs {
				p.Mul(p, big.NewInt(int64(x)))
			}
			return p
		}
		kept := n // without a window everything is
		if f.Window > 0 {
			kept = min(n, f.Window)
		}
		tokens := new(big.Int).Add(mul(f.Layers-f.WindowLayers, n), mul(f.WindowLayers, kept))
		want := tokens.Mul(tokens, mul(f.KVHeads, f.KeyLength+f.ValueLength, 2))
		got := f.KVBytes(n, 2)
		exact := want.IsInt64() && want.Int64() == got
		if !exact && (got != math.MaxInt64 || want.Cmp(big.NewInt(math.MaxInt64/4)) < 0) {
			t.Fatalf("%+v for %d: %d, want %s", f, n, got, want)
		}
	})
}

func TestFootprintPrefersWhatWasGiven(t *testing.T) {
	if got := (registry.Footprint{Estimated: 5, Given: 3}).Bytes(); got != 3 {
		t.Errorf("%d, want the 3 that were given", got)
	}
	if got := (registry.Footprint{Estimated: 5}).Bytes(); got != 5 {
		t.Errorf("%d, want the 5 that were estimated", got)
	}
}

func TestFinalOperationStates(t *testing.T) {
	final := map[string]bool{"succeeded": true, "failed": true, "cancelled": true}
	for _, s := range constants(t, "OperationState") {
		if registry.OperationState(s).Final() != final[s] {
			t.Errorf("Final of %s is %v", s, !final[s])
		}
	}
}

// TestSecretsOfAccessAreNotInJSON: hashes never leave by being part of something that is sent.
func TestSecretsOfAccessAreNotInJSON(t *testing.T) {
	for _, v := range []any{registry.User{PasswordHash: "s3cret"}, registry.Token{Hash: []byte("s3cret")}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if s := strings.ToLower(string(b)); strings.Contains(s, "hash") || strings.Contains(s, "s3cret") || strings.Contains(s, "cznjcmv0") {
			t.Errorf("%s carries the secret", b)
		}
	}
}
