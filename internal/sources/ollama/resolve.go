package ollama

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/internal/sources"
	"github.com/industriverse/llmmodelmanager/internal/sources/fetch"
	"github.com/industriverse/llmmodelmanager/internal/sources/headers"
)

// Resolve finds the manifest that the name stands for now and reads the header of the weights, by ranges where they are not
// on this disk. The revision is the manifest's digest. A model that is whole on this disk is found also when its
// registry cannot be asked, or does not have it, which a note says.
//
// Errors: CodeNotFound (no such model, or no such tag); CodeInvalid (no name, another format); CodeUnsupported (cloud only,
// safetensors tensors, no model of Ollama's, needs a newer Ollama); CodeForbidden (no encryption, or a private address,
// and not listed); CodeLoadingFailed with FailureGated (wants a login, or refuses the one it got), FailureCorruptFile or
// FailureMissingFile; CodeBusy with RetryAfter; CodeUnavailable. A cancelled ctx is returned as it is.
func (s *Source) Resolve(ctx context.Context, ref sources.Ref) (sources.Snapshot, error) {
	snap := sources.Snapshot{Ref: ref, Root: s.dir}
	l, err := s.look(ctx, ref)
	if err != nil {
		return snap, err
	}
	m := l.manifest
	conf, err := s.config(ctx, l)
	if err != nil {
		return snap, err
	}
	weights, err := m.weights(l.name, conf)
	if err != nil {
		return snap, err
	}
	if ref.Format != "" && ref.Format != registry.FormatGGUF {
		return snap, registry.Errorf(registry.CodeInvalid, "%s is a model of format %s, the model says %s; set model_format to %s", l.name, registry.FormatGGUF, ref.Format, registry.FormatGGUF)
	}
	snap.Revision, snap.Files, snap.Bytes, snap.Main = m.digest, m.files(), m.bytes(), weights.path()
	for _, b := range snap.Files {
		if s.has(strings.TrimPrefix(b.Path, "blobs/"), b.Size) {
			snap.OnDisk += b.Size
		}
	}
	var cost sources.Cost
	if snap.Facts, cost, err = s.facts(ctx, l, conf, weights); err != nil {
		return snap, headers.InFile(err, l.name.String())
	}
	if err := s.describe(ctx, l, conf, weights, &snap.Facts); err != nil {
		return snap, err
	}
	if l.session != nil {
		cost.Requests += int(l.session.requests.Load())
		cost.Bytes += l.session.bytes.Load()
	}
	snap.Cost = cost
	return snap, nil
}

// Offers returns the one model that a name stands for. It reads the manifest and the configuration.
func (s *Source) Offers(ctx context.Context, ref sources.Ref) ([]registry.Offer, error) {
	l, err := s.look(ctx, ref)
	if err != nil {
		return nil, err
	}
	conf, err := s.config(ctx, l)
	if err != nil {
		return nil, err
	}
	if _, err := l.manifest.weights(l.name, conf); err != nil {
		return nil, err
	}
	return []registry.Offer{{
		Format: registry.FormatGGUF, Label: cmp.Or(clip(strings.Map(printable, conf.FileType)), l.name.Tag),
		Files: len(l.manifest.files()), Bytes: l.manifest.bytes(),
	}}, nil
}

// config reads the configuration of a model; the zero value when it has none.
func (s *Source) config(ctx context.Context, l *look) (config, error) {
	if l.manifest.Config.Digest == "" {
		return config{}, nil
	}
	raw, err := s.text(ctx, l, l.manifest.Config, maxConfig)
	if err != nil {
		return config{}, err
	}
	c, err := readConfig(raw)
	return c, headers.InFile(err, l.name.String())
}

// text returns a small blob, from this disk if it is there.
func (s *Source) text(ctx context.Context, l *look, b layer, limit int64) ([]byte, error) {
	if s.has(b.file(), b.Size) && b.Size <= limit {
		raw, err := readSmall(s.path(b.file(), b.Size), limit)
		if sum := sha256.Sum256(raw); err == nil && hex.EncodeToString(sum[:]) == b.sum() {
			return raw, nil
		}
		// What is damaged here may be whole there.
	}
	if l.session == nil {
		return nil, headers.Corrupt("Delete the file and load again", "%s is damaged: it is not what its digest says", s.blob(b.file()))
	}
	return l.session.small(ctx, b, limit)
}

// facts reads the header of the weights: all of it where they are on this disk, and what stands before the vocabulary, some
// 256 KiB, where they are not.
func (s *Source) facts(ctx context.Context, l *look, conf config, b layer) (registry.Facts, sources.Cost, error) {
	if s.has(b.file(), b.Size) {
		facts, err := factsOnDisk(ctx, s.path(b.file(), b.Size), b.Size)
		return facts, sources.Cost{}, headers.InFile(err, b.path())
	}
	if l.session == nil {
		return registry.Facts{}, sources.Cost{}, headers.Missing("Pull or fetch the model again", "%s is gone", s.blob(b.file()))
	}
	r := fetch.ReaderAt(ctx, l.session.remote(b), b.Size, fetch.ReaderOptions{})
	facts, err := headers.SketchGGUF([]registry.File{{Path: b.path(), Size: b.Size}},
		func(string) (headers.File, error) { return remoteFile{r}, nil }, headers.Hints{Total: parameters(conf.ModelType)})
	return facts, sources.Cost{Requests: r.Requests(), Bytes: r.Bytes()}, headers.InFile(err, b.path())
}

// remoteFile is a file that there is nothing to be closed of.
type remoteFile struct{ *fetch.RangeReader }

func (remoteFile) Close() error { return nil }

var modelType = regexp.MustCompile(`^(\d{1,4}(?:\.\d{1,4})?)([KMBT])$`)

// parameters reads the number of parameters as Ollama writes it for people: 134.52M, 70.6B; 0 when it is something else.
func parameters(s string) int64 {
	m := modelType.FindStringSubmatch(s)
	if m == nil {
		return 0
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0
	}
	return int64(math.Round(n * map[string]float64{"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}[m[2]]))
}

func factsOnDisk(ctx context.Context, path string, size int64) (registry.Facts, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return registry.Facts{}, explainDisk(path, err)
	}
	defer func() { _ = file.Close() }() // only read from
	return headers.ReadGGUF(readerIn{ctx, file}, size)
}

// readerIn stops when the context ends.
type readerIn struct {
	ctx context.Context //nolint:containedctx // io.ReaderAt has none
	io.ReaderAt
}

func (r readerIn) ReadAt(p []byte, off int64) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.ReaderAt.ReadAt(p, off)
}

// describe adds what the library itself says about a model to what its weights say.
func (s *Source) describe(ctx context.Context, l *look, conf config, weights layer, f *registry.Facts) error {
	note := func(format string, args ...any) { f.Notes = append(f.Notes, fmt.Sprintf(format, args...)) }
	m := l.manifest
	f.Notes = append(f.Notes, l.notes...)
	if f.Quantization == "" {
		f.Quantization = clip(strings.Map(printable, conf.FileType))
	}
	for _, p := range m.of(kindProjector) {
		f.Vision = true
		note("A vision part of %s belongs to it.", registry.Bytes(p.Size))
	}
	for _, a := range m.of(kindAdapter) {
		note("An adapter of %s belongs to it, which only the engine ollama applies.", registry.Bytes(a.Size))
	}
	for _, d := range m.of(kindDraft) {
		note("A draft model of %s belongs to it, which only the engine ollama uses.", registry.Bytes(d.Size))
	}
	switch template := len(m.of(kindTemplate))+len(m.of(kindPrompt)) > 0; {
	case f.ChatTemplate || f.Embedding:
	case !s.has(weights.file(), weights.Size) && parameters(conf.ModelType) == 0: // the sketch has said so
	case !s.has(weights.file(), weights.Size):
		note("Whether it has a chat template that llamacpp can use is seen once it was fetched: that stands at the end of the header.")
	case template:
		note("Its chat template is in Ollama's own language: the engine ollama applies it, llamacpp does not.")
	}
	if len(m.of(kindSystem)) > 0 || len(m.of(kindMessages)) > 0 {
		note("It comes with a system prompt or messages, which only the engine ollama adds to a chat.")
	}
	if conf.Requires != "" {
		note("The engine ollama must be of version %s or newer.", clip(strings.Map(printable, conf.Requires)))
	}
	for _, p := range m.of(kindParams) {
		raw, err := s.text(ctx, l, p, maxText)
		if err != nil {
			return err
		}
		if params := readParams(raw); len(params) > 0 {
			note("Its own parameters, which the engine ollama applies: %s.", strings.Join(params, ", "))
		}
	}
	if licences := m.of(kindLicense); f.Licence == "" && len(licences) > 0 && licences[0].Size <= maxText {
		raw, err := s.text(ctx, l, licences[0], maxText)
		if err != nil {
			return err
		}
		f.Licence = licenceOf(string(raw))
	}
	return nil
}
