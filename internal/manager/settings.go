package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// The keys of settings that an admin changes while the server runs.
const (
	keyLimits    = "storage.limits"
	keyRetention = "storage.retention"
	keyRoots     = "storage.roots"
)

// confined is a source that reads from certain folders only.
type confined interface {
	Roots() []string

	// SetRoots sets the folders; none allows any. An error says which folder cannot be one, and changes nothing.
	SetRoots(folders []string) error

	// Within checks that a path which a field of a model names lies within the folders, all links followed. CodeInvalid when
	// it does not.
	Within(ctx context.Context, field, path string) error
}

// readSetting reads a setting into v and reports whether it was set.
func (m *Manager) readSetting(ctx context.Context, key string, v any) (bool, error) {
	text, ok, err := m.store.Setting(ctx, key)
	if err != nil || !ok {
		return false, err
	}
	if err := json.Unmarshal([]byte(text), v); err != nil {
		return false, registry.Errorf(registry.CodeInternal, "The setting %s cannot be read: %w. Set it again", key, err)
	}
	return true, nil
}

func (m *Manager) writeSetting(ctx context.Context, key string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return m.store.SetSetting(ctx, key, string(b))
}

// applySettings puts the stored settings into effect. One that cannot be read is logged and not in effect.
func (m *Manager) applySettings(ctx context.Context) error {
	limits, err := m.BandwidthLimits(ctx)
	if err != nil && registry.CodeOf(err) != registry.CodeInternal {
		return err
	}
	if err != nil {
		m.log.Error("The bandwidth limits are not in effect", "err", err)
	}
	m.applyLimits(limits)
	for _, src := range m.Sources {
		if c, ok := src.(confined); ok {
			m.baseRoots = c.Roots()
		}
	}
	roots, err := m.RootFolders(ctx)
	if err != nil {
		return err // an allow-list that is not in effect would let everything through
	}
	return m.applyRoots(roots.Folders)
}

// BandwidthLimits returns the limits on downloads.
func (m *Manager) BandwidthLimits(ctx context.Context) (registry.BandwidthLimits, error) {
	var l registry.BandwidthLimits
	_, err := m.readSetting(ctx, keyLimits, &l)
	return l, err
}

// SetBandwidthLimits stores the limits on downloads and puts them into effect at once. CodeInvalid.
func (m *Manager) SetBandwidthLimits(ctx context.Context, l registry.BandwidthLimits) error {
	var fields []registry.FieldError
	if l.Total < 0 {
		fields = append(fields, registry.FieldError{Field: "total", Msg: "must be bytes per second, 0 for no limit"})
	}
	for t, n := range l.Sources {
		switch {
		case !slices.Contains(registry.SourceTypes, t):
			fields = append(fields, registry.FieldError{Field: "sources." + string(t), Msg: "is no source_type"})
		case n < 0:
			fields = append(fields, registry.FieldError{Field: "sources." + string(t), Msg: "must be bytes per second, 0 for no limit"})
		}
	}
	if len(fields) > 0 {
		return &registry.Error{Code: registry.CodeInvalid, Op: "manager.SetBandwidthLimits", Msg: "The limits are not valid", Fields: fields}
	}
	if err := m.writeSetting(ctx, keyLimits, l); err != nil {
		return err
	}
	m.applyLimits(l)
	return nil
}

func (m *Manager) applyLimits(l registry.BandwidthLimits) {
	if m.Bandwidth == nil {
		return
	}
	m.Bandwidth.SetRate(l.Total)
	for _, src := range m.Sources {
		m.Bandwidth.SetSourceRate(src.Type(), l.Sources[src.Type()])
	}
}

// RootFolders returns the folders that local models may be read from.
func (m *Manager) RootFolders(ctx context.Context) (registry.RootFolders, error) {
	r := registry.RootFolders{From: "settings"}
	set, err := m.readSetting(ctx, keyRoots, &r.Folders)
	if err == nil && !set {
		r = registry.RootFolders{Folders: m.baseRoots, From: "command line"}
	}
	if r.Folders == nil {
		r.Folders = []string{}
	}
	return r, err
}

// SetRootFolders stores the folders that local models may be read from and puts them into effect at once, instead of
// those of the command line; nil goes back to those. Models outside of them that are loaded stay loaded. CodeInvalid.
func (m *Manager) SetRootFolders(ctx context.Context, folders []string) (registry.RootFolders, error) {
	clean := make([]string, 0, len(folders))
	for i, f := range folders {
		if !filepath.IsAbs(f) {
			return registry.RootFolders{}, &registry.Error{Code: registry.CodeInvalid, Op: "manager.SetRootFolders", Msg: "The folders are not valid",
				Fields: []registry.FieldError{{Field: fmt.Sprintf("folders.%d", i), Msg: "must be an absolute path, such as /srv/models"}}}
		}
		if f = filepath.Clean(f); !slices.Contains(clean, f) {
			clean = append(clean, f)
		}
	}
	next := registry.RootFolders{Folders: clean, From: "settings"}
	if folders == nil {
		next = registry.RootFolders{Folders: append([]string{}, m.baseRoots...), From: "command line"}
	}
	before, err := m.RootFolders(ctx)
	if err != nil {
		return registry.RootFolders{}, err
	}
	if err := m.applyRoots(next.Folders); err != nil {
		return registry.RootFolders{}, err
	}
	if folders == nil {
		err = m.store.DeleteSetting(ctx, keyRoots)
	} else {
		err = m.writeSetting(ctx, keyRoots, clean)
	}
	if err != nil {
		return registry.RootFolders{}, errors.Join(err, m.applyRoots(before.Folders))
	}
	return next, nil
}

// confineTokenizer holds a tokenizer_path that is a path of this machine against the folders that models may be read from,
// whatever the model's source: an engine reads it, and may run what it finds there. CodeInvalid with the field when it is
// outside of them; otherwise the error says why it cannot be read.
func (m *Manager) confineTokenizer(ctx context.Context, model registry.Model) error {
	path := model.TokenizerPath
	if !filepath.IsAbs(path) {
		return nil // it names something within the model's source
	}
	for _, src := range m.Sources {
		c, ok := src.(confined)
		if !ok {
			continue
		}
		err := c.Within(ctx, "tokenizer_path", path)
		if err == nil || ctx.Err() != nil {
			return err
		}
		e := *registry.AsError(err)
		switch {
		case e.Code == registry.CodeUnavailable:
			e.Code = registry.CodeInvalid // otherwise what is known of the model would be used without having looked
		case e.Code == registry.CodeInvalid && len(e.Fields) == 0:
			e.Fields, e.Msg = []registry.FieldError{{Field: "tokenizer_path", Msg: e.Msg}}, "The tokenizer cannot be used"
		}
		return &e
	}
	return nil
}

// applyRoots confines the source of local files. The tiny models of self-tests lie in a folder of ours, which belongs to
// them.
func (m *Manager) applyRoots(folders []string) error {
	if len(folders) > 0 {
		folders = append(slices.Clone(folders), m.selfTestDir())
	}
	for _, src := range m.Sources {
		if c, ok := src.(confined); ok {
			if err := c.SetRoots(slices.Clone(folders)); err != nil {
				return err
			}
		}
	}
	return nil
}
