package server

import (
	"context"
	"os"
	"regexp"
	"strings"

	"github.com/a-h/templ"
	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/loaders/process"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/components"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

// livePage says what is live on the page that asks.
func (s *Server) livePage(c echo.Context) (livePage, error) {
	id := c.QueryParam("id")
	all := append(append([]registry.EventKind{}, modelKinds...), registry.EventEngine, registry.EventManifest)
	switch c.QueryParam("page") {
	case "overview":
		return livePage{kinds: all, tick: liveTick, parts: s.liveOverview}, nil
	case "models":
		return livePage{kinds: modelKinds, tick: liveTick, parts: s.liveModels}, nil
	case "model":
		rec, err := s.seen(c.Request().Context(), id)
		if err != nil {
			return livePage{}, err
		}
		m := &liveModel{s: s, id: rec.ModelID}
		return livePage{kinds: append([]registry.EventKind{registry.EventArtifact}, modelKinds...), models: []string{rec.ModelID}, tick: logTick, parts: m.parts}, nil
	case "activity":
		return livePage{kinds: modelKinds, tick: liveTick, parts: s.liveActivity}, nil
	case "operation":
		return livePage{kinds: modelKinds, tick: liveTick, parts: s.liveOperation}, nil
	case "engines":
		return livePage{kinds: all, tick: liveTick, parts: s.liveEngines}, nil
	case "engine":
		if _, err := s.Manager.EngineName(id); err != nil {
			return livePage{}, err
		}
		return livePage{kinds: all, tick: liveTick, parts: s.liveEngine}, nil
	case "yaml":
		return livePage{kinds: all, tick: liveTick, parts: s.liveYAML}, nil
	case "storage":
		if err := auth.Allowed(auth.FromContext(c.Request().Context()), auth.StorageRead, ""); err != nil {
			return livePage{}, err
		}
		return livePage{kinds: []registry.EventKind{registry.EventStorage, registry.EventArtifact, registry.EventModelStatus, registry.EventReset}, tick: storageTick, parts: s.liveStorage}, nil
	}
	return livePage{}, badParam("page", "must be overview, models, model, activity, operation, engines, engine, yaml or storage")
}

func (s *Server) badge(c echo.Context) (part, error) {
	_, n, err := s.needs(c)
	return part{"badge", partials.NavBadge(n)}, err
}

func (s *Server) liveOverview(c echo.Context, _ *touched) ([]part, error) {
	v, err := s.overview(c)
	if err != nil {
		return nil, err
	}
	return []part{
		{"badge", partials.NavBadge(v.Page.Needs)}, {"devices", partials.Devices(v)}, {"loaded", partials.Loaded(v)},
		{"needs", partials.Needs(v.Needs)}, {"activity", partials.Feed(v)},
	}, nil
}

// liveModels sends the rows of the models that something happened to, at first those of the list's first page.
func (s *Server) liveModels(c echo.Context, t *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	out := []part{badge}
	var rows []templ.Component
	if t == nil {
		v, err := s.models(c)
		if err != nil {
			return nil, err
		}
		for _, r := range v.Rows {
			rows = append(rows, partials.ModelRow(r, true))
		}
	} else {
		res := s.Manager.Resources()
		for id := range t.models {
			if !s.sees(c, id) || len(rows) == maxRows {
				continue
			}
			l, err := s.Manager.Get(c.Request().Context(), id)
			if err != nil {
				continue // deleted in this moment
			}
			rows = append(rows, partials.ModelRow(s.row(&l, canIn(c.Request().Context(), l.Team), res), true))
		}
		if t.changed {
			f := view.Filter{Q: c.QueryParam("q"), Status: c.QueryParam("status"), Team: c.QueryParam("team"), Source: c.QueryParam("source_type")}
			out = append(out, part{"list", partials.ListNote(f)})
		}
	}
	if len(rows) > 0 {
		out = append(out, part{"rows", templ.Join(rows...)})
	}
	return out, nil
}

func (s *Server) liveActivity(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.activity(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"running", partials.RunningNow(v.Running, v.Can)}, {"past", partials.Past(v)}}, nil
}

func (s *Server) liveOperation(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.operationPage(c, c.QueryParam("id"))
	if err != nil {
		return nil, err
	}
	return []part{badge, {"operation", partials.OperationNow(v)}}, nil
}

func (s *Server) liveEngines(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.enginesPage(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"engines", partials.EngineList(v)}}, nil
}

func (s *Server) liveEngine(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.enginePage(c, c.QueryParam("id"))
	if err != nil {
		return nil, err
	}
	return []part{badge, {"head", partials.EngineHead(v)}, {"work", partials.EngineWork(v)}, {"about", partials.EngineAbout(v)}, {"uses", partials.EngineUses(v)}, {"versions", partials.EngineVersions(v)}, {"history", partials.EngineHistory(v)}}, nil
}

func (s *Server) liveYAML(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"manifest", partials.ManifestStatus(s.visibleManifest(c))}}, nil
}

func (s *Server) liveStorage(c echo.Context, _ *touched) ([]part, error) {
	badge, err := s.badge(c)
	if err != nil {
		return nil, err
	}
	v, err := s.storage(c)
	if err != nil {
		return nil, err
	}
	return []part{badge, {"disks", partials.Disks(v)}, {"stored", partials.Stored(v)}}, nil
}

// liveModel is the stream of one model's page. It follows the engine's log for who may read it.
type liveModel struct {
	s    *Server
	id   string
	path string // of the log that is followed
	log  *process.Follower
}

func (m *liveModel) parts(c echo.Context, _ *touched) ([]part, error) {
	rec, err := m.s.seen(c.Request().Context(), m.id)
	if err != nil {
		return nil, err
	}
	v, err := m.s.modelPage(c, m.id, lookForLive)
	if err != nil {
		return nil, err
	}
	badge, err := m.s.badge(c)
	if err != nil {
		return nil, err
	}
	if v.History, err = m.s.history(c, m.id); err != nil {
		return nil, err
	}
	out := []part{badge, {"head", partials.ModelHead(v)}, {"now", partials.ModelNow(v)}, {"files", partials.Files(v)}, {"facts", partials.Facts(v)}, {"history", partials.History(v.History)}}
	if m.s.mayReadLog(c, rec.Team) {
		out = append(out, m.logParts(c.Request().Context())...)
	}
	return out, nil
}

// logParts is what the engine wrote since: all of a new log, the new lines of the one that is followed.
func (m *liveModel) logParts(ctx context.Context) []part {
	path, err := m.s.Manager.LogPath(ctx, m.id)
	if err != nil {
		return nil
	}
	fresh := m.log == nil || path != m.path
	if fresh {
		from := int64(0)
		if fi, err := os.Stat(path); err == nil {
			from = max(0, fi.Size()-logLines*512)
		}
		m.path, m.log = path, process.Follow(path, from)
		lines := m.s.Manager.ForPeople(m.log.Lines())
		if from > 0 && len(lines) > 0 {
			lines = lines[1:] // half a line
		}
		return []part{{"log-reset", partials.LogBox(showLines(lines))}}
	}
	if lines := m.s.Manager.ForPeople(m.log.Lines()); len(lines) > 0 {
		return []part{{"log", components.LogLines(showLines(lines))}} //nolint:contextcheck // it is drawn later, with the context of who draws it
	}
	return nil
}

var colours = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`)

// showLines makes lines of a log fit to be shown: the last of them, without secrets and without what a terminal needs.
func showLines(lines []string) []string {
	if len(lines) > logLines {
		lines = lines[len(lines)-logLines:]
	}
	out := make([]string, len(lines))
	for i, l := range lines {
		if len(l) > 4096 {
			l = l[:4096] + " …"
		}
		l = colours.ReplaceAllString(strings.ToValidUTF8(l, "\uFFFD"), "")
		out[i] = process.Scrub(strings.Map(func(r rune) rune {
			if r == '\t' || r >= ' ' && r != 0x7f {
				return r
			}
			return -1
		}, l))
	}
	return out
}
