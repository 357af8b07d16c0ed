package server

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
	"github.com/industriverse/llmmodelmanager/web/templates/pages"
	"github.com/industriverse/llmmodelmanager/web/templates/partials"
	"github.com/industriverse/llmmodelmanager/web/templates/view"
)

func (s *Server) pageStorage(c echo.Context) error {
	v, err := s.storage(c)
	if err != nil {
		return err
	}
	return s.showStorage(c, http.StatusOK, v)
}

// storageLook is the last walk through what is stored, shared by all open pages.
type storageLook struct {
	mu    sync.Mutex // held while the folders are walked through
	at    time.Time
	found registry.Storage
}

// storageFor is how long a walk is believed. Pages look again after every deletion of their own.
const storageFor = 2 * time.Second

func (l *storageLook) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = time.Time{}
}

func (l *storageLook) get(ctx context.Context, s *Server) (registry.Storage, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.at.IsZero() && s.Now().Sub(l.at) < storageFor {
		return l.found, nil
	}
	found, err := s.Manager.Storage(ctx)
	if err != nil {
		return found, err
	}
	l.found, l.at = found, s.Now()
	return found, nil
}

// storage is what is stored as the caller may see it, without the forms of admins.
func (s *Server) storage(c echo.Context) (view.Storage, error) {
	ctx := c.Request().Context()
	id := auth.FromContext(ctx)
	st, err := s.stored.get(ctx, s)
	if err != nil {
		return view.Storage{}, err
	}
	in := view.StorageInput{Storage: st, Now: s.Now(), Hidden: make([]bool, len(st.Artifacts)), Can: make([]bool, len(st.Artifacts)), Verify: make([]string, len(st.Artifacts))}
	for i, a := range st.Artifacts {
		team, err := s.storedTeam(ctx, a)
		if err != nil && registry.CodeOf(err) != registry.CodeNotFound { // a model was deleted in this moment
			return view.Storage{}, err
		}
		in.Can[i] = err == nil && auth.Allowed(id, auth.StorageDelete, team) == nil
		if in.Verify[i], err = s.verifiable(ctx, a); err != nil {
			return view.Storage{}, err
		}
	}
	if !id.Admin {
		in.Storage.Artifacts = slices.Clone(st.Artifacts)
		for i := range in.Storage.Artifacts {
			in.Hidden[i] = s.hideStored(c, &in.Storage.Artifacts[i])
		}
	}
	v := view.StorageOf(in)
	v.Can.Manage = auth.Allowed(id, auth.StorageManage, "") == nil
	return v, nil
}

// verifiable returns the first model whose files a stored artifact is and whose files the caller may have read again; "" when
// there is none.
func (s *Server) verifiable(ctx context.Context, a registry.StoredArtifact) (string, error) {
	if a.Incomplete || a.InUse || a.Revision == "" {
		return "", nil
	}
	for _, id := range a.Models {
		rec, err := s.Store.Model(ctx, id)
		if registry.CodeOf(err) == registry.CodeNotFound {
			continue
		}
		if err != nil {
			return "", err
		}
		if rec.SourceType != a.Source || auth.Allowed(auth.FromContext(ctx), auth.ModelFetch, rec.Team) != nil {
			continue
		}
		known, ok, err := s.Store.Artifact(ctx, id)
		if err != nil {
			return "", err
		}
		if ok && known.Fetched == a.Revision && known.Revision == a.Revision {
			return id, nil
		}
	}
	return "", nil
}

// hideStored leaves out of a stored artifact what the caller may not know, and reports whether that is all of its names.
// Its folder stays: what shows it to others leaves that out.
func (s *Server) hideStored(c echo.Context, a *registry.StoredArtifact) bool {
	all := len(a.Models)
	a.Models = slices.DeleteFunc(slices.Clone(a.Models), func(id string) bool { return !s.sees(c, id) })
	if all == 0 || len(a.Models) > 0 {
		return false
	}
	a.Path, a.Revision, a.Names = "weights of another team", "", nil
	return true
}

// showStorage fills in the forms that were not sent with v.
func (s *Server) showStorage(c echo.Context, status int, v view.Storage) error {
	ctx := c.Request().Context()
	if v.Can.Manage {
		if v.Retention == nil {
			r, err := s.Manager.Retention(ctx)
			if err != nil {
				return err
			}
			v.Retention = retentionValues(r)
		}
		if v.Limits == nil {
			l, err := s.Manager.BandwidthLimits(ctx)
			if err != nil {
				return err
			}
			v.Limits = limitValues(l)
		}
		r, err := s.Manager.RootFolders(ctx)
		if err != nil {
			return err
		}
		if v.Roots = r; v.Errors["roots"] == "" {
			v.RootsText = strings.Join(r.Folders, "\n")
		}
	}
	v.Page = s.page(c, "Storage", "storage", view.LiveURL("storage"))
	return html(c, status, pages.Storage(v))
}

// rowOf finds the row that an address or a form names. CodeNotFound.
func (s *Server) rowOf(c echo.Context, source, path, revision string) (view.Stored, error) {
	v, err := s.storage(c)
	if err != nil {
		return view.Stored{}, err
	}
	for _, r := range v.Rows {
		if string(r.Source) == source && r.Path == path && r.Revision == revision && revision != "" {
			return r, nil
		}
	}
	return view.Stored{}, registry.Errorf(registry.CodeNotFound, "There is no revision %q of %s on this machine any more. Look at what is stored now", revision, path)
}

// pageDeleteStored asks before a revision is deleted.
func (s *Server) pageDeleteStored(c echo.Context) error {
	r, err := s.rowOf(c, c.QueryParam("source_type"), c.QueryParam("source_path"), c.QueryParam("revision"))
	if err != nil {
		return err
	}
	if strings.HasPrefix(swaps(c), "s-") {
		if c.QueryParam("keep") != "" {
			return html(c, http.StatusOK, partials.StoredRow(r))
		}
		return html(c, http.StatusOK, partials.StoredAskRow(r))
	}
	return html(c, http.StatusOK, pages.StorageDelete(s.page(c, "Delete "+r.Path, "storage", ""), r))
}

func (s *Server) postDeleteStored(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	source := registry.SourceType(in.Get("source_type"))
	if err := oneOf("source_type", source, registry.SourceTypes); err != nil {
		return err
	}
	path, revision := in.Get("source_path"), in.Get("revision")
	if err := auth.Allowed(auth.FromContext(c.Request().Context()), auth.StorageDelete, ""); err != nil && (path == "" || revision == "") {
		return err
	}
	freed, err := s.removeStored(c.Request().Context(), source, path, revision, "asked for in the console")
	s.stored.forget()
	if err != nil {
		return err
	}
	if swaps(c) == "stored" {
		v, err := s.storage(c)
		if err != nil {
			return err
		}
		return html(c, http.StatusOK, partials.Stored(v))
	}
	return seeOther(c, "/storage", "ok", fmt.Sprintf("%s at %s is deleted; %s came back.", path, view.ShortRevision(revision), registry.Bytes(freed)))
}

// postClean removes unfinished downloads.
func (s *Server) postClean(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	older, err := time.ParseDuration(in.Get("older"))
	if err != nil || older < 0 {
		return badParam("older", "must be a duration such as 24h")
	}
	freed, err := s.Manager.CleanStored(c.Request().Context(), older, actor(c), "asked for in the console")
	s.stored.forget()
	s.Auth.Audit(c.Request().Context(), auth.StorageManage, "artifact:unfinished", err, registry.Bytes(freed)+" freed")
	if err != nil {
		return err
	}
	if freed == 0 {
		return seeOther(c, "/storage", "ok", "There was nothing to remove.")
	}
	return seeOther(c, "/storage", "ok", registry.Bytes(freed)+" of unfinished downloads are removed.")
}

const day = 24 * time.Hour

// decimal writes a number for a field: without a point where there is none to write, "" for 0.
func decimal(f float64) string {
	if f == 0 {
		return ""
	}
	return strconv.FormatFloat(math.Round(f*1000)/1000, 'f', -1, 64)
}

// amount reads a number of a field in units; an empty field is 0.
func amount(text string, unit float64) (int64, string) {
	text = strings.ReplaceAll(strings.TrimSpace(text), ",", ".")
	if text == "" {
		return 0, ""
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(f) || f < 0 || f*unit > math.MaxInt64/2 {
		return 0, "It must be a number that is not negative, or empty."
	}
	return int64(f * unit), ""
}

func retentionValues(r registry.Retention) map[string]string {
	return map[string]string{
		"unused_for": decimal(time.Duration(r.UnusedFor).Hours() / 24), "partial_for": decimal(time.Duration(r.PartialFor).Hours() / 24),
		"max_bytes": decimal(float64(r.MaxBytes) / (1 << 30)), "include_used": strconv.FormatBool(r.IncludeUsed),
	}
}

// postRetention shows what a policy would delete, stores it, or stores it and applies it at once.
func (s *Server) postRetention(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	v, err := s.storage(c)
	if err != nil {
		return err
	}
	v.Retention = map[string]string{}
	read := func(name string, unit float64) int64 {
		v.Retention[name] = in.Get(name)
		n, wrong := amount(in.Get(name), unit)
		if wrong != "" {
			v.Errors["retention."+name] = wrong
		}
		return n
	}
	r := registry.Retention{
		UnusedFor: registry.Duration(read("unused_for", float64(day))), PartialFor: registry.Duration(read("partial_for", float64(day))),
		MaxBytes: read("max_bytes", 1<<30), IncludeUsed: in.Get("include_used") == "true",
	}
	v.Retention["include_used"] = strconv.FormatBool(r.IncludeUsed)
	if len(v.Errors) > 0 {
		return s.showStorage(c, http.StatusUnprocessableEntity, v)
	}
	if v.DryRun, err = s.Manager.Retain(ctx, r, true, actor(c)); err != nil {
		return s.refuseStorage(c, v, "retention", err)
	}
	switch in.Get("action") {
	case "save", "apply":
	default:
		v.Dry = true
		return s.showStorage(c, http.StatusOK, v)
	}
	err = s.Manager.SetRetention(ctx, r)
	s.audited(c, "setting:retention", err, r)
	if err != nil {
		return s.refuseStorage(c, v, "retention", err)
	}
	if in.Get("action") == "save" {
		return seeOther(c, "/storage", "ok", "The policy is stored. "+view.RetentionSays(r))
	}
	items, err := s.Manager.Retain(ctx, r, false, actor(c))
	s.stored.forget()
	if err != nil {
		return err
	}
	kind, said := retainedWords(items)
	return seeOther(c, "/storage", kind, "The policy is stored. "+said)
}

// retainedWords tells what a policy has deleted.
func retainedWords(items []registry.RetentionItem) (kind, said string) {
	var freed int64
	done, refused := 0, 0
	for _, it := range items {
		if freed += it.Freed; it.Error != nil {
			refused++
		} else {
			done++
		}
	}
	said = fmt.Sprintf("%s deleted, %s came back.", view.Plural(done, "item was", "items were"), registry.Bytes(freed))
	if refused == 0 {
		return "ok", said
	}
	return "warn", fmt.Sprintf("%s %s could not be deleted; the log says why.", said, view.Plural(refused, "item", "items"))
}

// refuseStorage shows the page again with the errors at their fields.
func (s *Server) refuseStorage(c echo.Context, v view.Storage, group string, err error) error {
	e := registry.AsError(err)
	if e.Code != registry.CodeInvalid {
		return err
	}
	for _, f := range e.Fields {
		v.Errors[group+"."+strings.TrimPrefix(f.Field, "sources.")] = sentence("It " + f.Msg)
	}
	if len(e.Fields) == 0 {
		v.Errors[group] = sentence(e.Msg)
	}
	return s.showStorage(c, http.StatusUnprocessableEntity, v)
}

const mebi = 1 << 20

func limitValues(l registry.BandwidthLimits) map[string]string {
	out := map[string]string{"total": decimal(float64(l.Total) / mebi)}
	for t, n := range l.Sources {
		out[string(t)] = decimal(float64(n) / mebi)
	}
	return out
}

func (s *Server) postLimits(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	v, err := s.storage(c)
	if err != nil {
		return err
	}
	v.Limits = map[string]string{}
	l := registry.BandwidthLimits{Sources: map[registry.SourceType]int64{}}
	read := func(name string) int64 {
		v.Limits[name] = in.Get(name)
		n, wrong := amount(in.Get(name), mebi)
		if wrong != "" {
			v.Errors["limits."+name] = wrong
		}
		return n
	}
	l.Total = read("total")
	for _, t := range registry.SourceTypes {
		if n := read(string(t)); n > 0 {
			l.Sources[t] = n
		}
	}
	if len(v.Errors) > 0 {
		return s.showStorage(c, http.StatusUnprocessableEntity, v)
	}
	err = s.Manager.SetBandwidthLimits(c.Request().Context(), l)
	s.audited(c, "setting:limits", err, l)
	if err != nil {
		return s.refuseStorage(c, v, "limits", err)
	}
	return seeOther(c, "/storage", "ok", "The limits hold from now on, also for what is being fetched.")
}

func (s *Server) postRoots(c echo.Context) error {
	in, err := form(c)
	if err != nil {
		return err
	}
	v, err := s.storage(c)
	if err != nil {
		return err
	}
	folders := []string{}
	for _, line := range strings.Split(strings.ReplaceAll(in.Get("folders"), "\r\n", "\n"), "\n") {
		if line = strings.TrimSpace(line); line != "" {
			folders = append(folders, line)
		}
	}
	if in.Get("action") == "reset" {
		folders = nil
	}
	_, err = s.Manager.SetRootFolders(c.Request().Context(), folders)
	s.audited(c, "setting:roots", err, folders)
	if err != nil {
		e := registry.AsError(err)
		if e.Code != registry.CodeInvalid {
			return err
		}
		v.RootsText, v.Errors["roots"] = in.Get("folders"), rootWords(e, folders)
		return s.showStorage(c, http.StatusUnprocessableEntity, v)
	}
	return seeOther(c, "/storage", "ok", "The folders of local models are set. What is loaded from elsewhere stays loaded.")
}

// rootWords names the folder that cannot be one.
func rootWords(e *registry.Error, folders []string) string {
	if len(e.Fields) == 0 {
		return sentence(e.Msg)
	}
	f := e.Fields[0]
	if i, err := strconv.Atoi(strings.TrimPrefix(f.Field, "folders.")); err == nil && i >= 0 && i < len(folders) {
		return sentence(folders[i] + " " + f.Msg)
	}
	return sentence("A folder " + f.Msg)
}
