package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

func (s *Server) storageRoutes() []route {
	const p = "/api/v1"
	return []route{
		{"GET", p + "/storage", auth.StorageRead, s.getStorage},
		{"DELETE", p + "/storage", auth.StorageDelete, s.deleteStored},
		{"POST", p + "/storage/clean", auth.StorageManage, s.cleanStorage},
		{"GET", p + "/storage/retention", auth.StorageManage, s.getRetention},
		{"PUT", p + "/storage/retention", auth.StorageManage, s.putRetention},
		{"POST", p + "/storage/retention", auth.StorageManage, s.applyRetention},
		{"GET", p + "/storage/limits", auth.StorageManage, s.getLimits},
		{"PUT", p + "/storage/limits", auth.StorageManage, s.putLimits},
		{"GET", p + "/storage/roots", auth.StorageManage, s.getRoots},
		{"PUT", p + "/storage/roots", auth.StorageManage, s.putRoots},
		{"GET", p + "/secrets", auth.SecretList, s.listSecrets},
		{"PUT", p + "/secrets/:name", auth.SecretManage, s.putSecret},
		{"DELETE", p + "/secrets/:name", auth.SecretManage, s.deleteSecret},
	}
}

// decodeStrict reads a JSON object into v. Fields that v does not have, and values of another type, are CodeInvalid.
func decodeStrict(c echo.Context, v any) error {
	raw, err := readBody(c, maxModelBody)
	if err != nil {
		return err
	}
	if _, err := registry.DecodeObject(raw); err != nil { // broken, or with a field twice
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The request is not valid: " + strings.TrimPrefix(err.Error(), "json: "), Err: err}
	}
	return nil
}

// getStorage lists what occupies the disks. What only other teams' models use is counted and not named.
func (s *Server) getStorage(c echo.Context) error {
	st, err := s.visibleStorage(c)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, st)
}

func (s *Server) visibleStorage(c echo.Context) (registry.Storage, error) {
	st, err := s.Manager.Storage(c.Request().Context())
	if err != nil || auth.FromContext(c.Request().Context()).Admin {
		return st, err
	}
	for i := range st.Artifacts {
		a := &st.Artifacts[i]
		all := len(a.Models)
		a.Models = slices.DeleteFunc(slices.Clone(a.Models), func(id string) bool { return !s.sees(c, id) })
		a.Folder = "" // where things lie on this machine is for admins
		if all > 0 && len(a.Models) == 0 {
			a.Path, a.Revision, a.Names = "weights of another team", "", nil
		}
	}
	return st, nil
}

// storedTeam is the team whose maintainers may delete a stored artifact: that of its models, if it is one; "" otherwise.
func (s *Server) storedTeam(ctx context.Context, a registry.StoredArtifact) (string, error) {
	team := ""
	for i, id := range a.Models {
		rec, err := s.Store.Model(ctx, id)
		if err != nil {
			return "", err
		}
		if i > 0 && rec.Team != team {
			return "", nil
		}
		team = rec.Team
	}
	return team, nil
}

// deleteStored deletes one revision from disk.
func (s *Server) deleteStored(c echo.Context) error {
	source := registry.SourceType(c.QueryParam("source_type"))
	if err := oneOf("source_type", source, registry.SourceTypes); err != nil {
		return err
	}
	path, revision := c.QueryParam("source_path"), c.QueryParam("revision")
	for name, v := range map[string]string{"source_type": string(source), "source_path": path, "revision": revision} {
		if v == "" {
			return badParam(name, "is required")
		}
	}
	freed, err := s.removeStored(c.Request().Context(), source, path, revision, "asked for over the API")
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]int64{"freed": freed})
}

// removeStored applies the policy to a deletion, deletes and writes the audit. Pages and API share it.
func (s *Server) removeStored(ctx context.Context, source registry.SourceType, path, revision, cause string) (freed int64, err error) {
	id := auth.FromContext(ctx)
	defer func() {
		if registry.CodeOf(err) != registry.CodeNotFound {
			s.Auth.Audit(ctx, auth.StorageDelete, fmt.Sprintf("artifact:%s:%s@%s", source, path, revision), err, registry.Bytes(freed)+" freed")
		}
	}()
	a, err := s.Manager.StoredArtifact(ctx, source, path, revision)
	if err != nil {
		return 0, err
	}
	team, err := s.storedTeam(ctx, a)
	if err != nil {
		return 0, err
	}
	if err := auth.Allowed(id, auth.StorageDelete, team); err != nil {
		if team != "" && !auth.Sees(id, team) {
			return 0, registry.Errorf(registry.CodeNotFound, "There is no revision %q of %s on this machine. List what is stored to see which there are", revision, path)
		}
		if team == "" {
			return 0, registry.Errorf(registry.CodeForbidden, "Only an admin may delete %s at %s: no single team's models use it. Ask one", path, revision)
		}
		return 0, err
	}
	return s.Manager.DeleteStored(ctx, source, path, revision, id.Actor(), cause)
}

// cleanStorage removes unfinished downloads that have not grown for some time.
func (s *Server) cleanStorage(c echo.Context) error {
	older := 24 * time.Hour
	if v := c.QueryParam("older_than"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return badParam("older_than", "must be a duration such as 24h, or 0s for all")
		}
		older = d
	}
	freed, err := s.Manager.CleanStored(c.Request().Context(), older, actor(c), "asked for over the API")
	s.Auth.Audit(c.Request().Context(), auth.StorageManage, "artifact:unfinished", err, registry.Bytes(freed)+" freed")
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]int64{"freed": freed})
}

func (s *Server) getRetention(c echo.Context) error {
	r, err := s.Manager.Retention(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, r)
}

func (s *Server) putRetention(c echo.Context) error {
	var r registry.Retention
	if err := decodeStrict(c, &r); err != nil {
		return err
	}
	err := s.Manager.SetRetention(c.Request().Context(), r)
	s.audited(c, "setting:retention", err, r)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, r)
}

// audited writes the audit of a changed setting with its new value.
func (s *Server) audited(c echo.Context, subject string, err error, value any) {
	b, _ := json.Marshal(value) // plain values: it cannot fail
	s.Auth.Audit(c.Request().Context(), auth.StorageManage, subject, err, string(b))
}

// applyRetention applies the stored policy, or one that is given, now; with dry_run it only says what would go.
func (s *Server) applyRetention(c echo.Context) error {
	ctx := c.Request().Context()
	dry, err := boolParam(c, "dry_run", false)
	if err != nil {
		return err
	}
	r, err := s.Manager.Retention(ctx)
	if err != nil {
		return err
	}
	if c.Request().ContentLength != 0 {
		r = registry.Retention{}
		if err := decodeStrict(c, &r); err != nil {
			return err
		}
	}
	items, err := s.Manager.Retain(ctx, r, dry, actor(c))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"dry_run": dry, "items": items})
}

func (s *Server) getLimits(c echo.Context) error {
	l, err := s.Manager.BandwidthLimits(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, l)
}

func (s *Server) putLimits(c echo.Context) error {
	var l registry.BandwidthLimits
	if err := decodeStrict(c, &l); err != nil {
		return err
	}
	err := s.Manager.SetBandwidthLimits(c.Request().Context(), l)
	s.audited(c, "setting:limits", err, l)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, l)
}

func (s *Server) getRoots(c echo.Context) error {
	r, err := s.Manager.RootFolders(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, r)
}

// putRoots sets the folders that local models may be read from; null goes back to those of the command line.
func (s *Server) putRoots(c echo.Context) error {
	var in struct {
		Folders []string `json:"folders"`
	}
	if err := decodeStrict(c, &in); err != nil {
		return err
	}
	r, err := s.Manager.SetRootFolders(c.Request().Context(), in.Folders)
	s.audited(c, "setting:roots", err, in.Folders)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, r)
}

func (s *Server) listSecrets(c echo.Context) error {
	list, err := s.Manager.Secrets(c.Request().Context(), teamsOf(c))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"secrets": list})
}

// secretTeam reads whose secret is meant: team=NAME, the default team if nothing is given, or all=true for every team's.
func (s *Server) secretTeam(c echo.Context) (string, error) {
	all, err := boolParam(c, "all", false)
	if err != nil {
		return "", err
	}
	team := c.QueryParam("team")
	switch {
	case all && team != "":
		return "", badParam("all", "cannot be given together with team")
	case all:
		team = ""
	case team == "":
		team = registry.DefaultTeam
	}
	id := auth.FromContext(c.Request().Context())
	if err := auth.Allowed(id, auth.SecretManage, team); err != nil {
		s.auditSecret(c, team, err)
		return "", err
	}
	return team, nil
}

func (s *Server) auditSecret(c echo.Context, team string, err error) {
	whose := "of every team"
	if team != "" {
		whose = "of the team " + team
	}
	s.Auth.Audit(c.Request().Context(), auth.SecretManage, "secret:"+c.Param("name"), err, c.Request().Method+", "+whose)
}

// putSecret stores a secret. Its value is never shown again.
func (s *Server) putSecret(c echo.Context) error {
	team, err := s.secretTeam(c)
	if err != nil {
		return err
	}
	in, err := object(c, "value")
	if err != nil {
		return err
	}
	value, err := text(in, "value")
	if err != nil {
		return err
	}
	secret := registry.Secret{Name: c.Param("name"), Team: team, UpdatedBy: actor(c)}
	created, err := s.Manager.PutSecret(c.Request().Context(), secret, value)
	s.auditSecret(c, team, err)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	return c.JSON(status, map[string]string{"name": secret.Name, "team": team})
}

func (s *Server) deleteSecret(c echo.Context) error {
	team, err := s.secretTeam(c)
	if err != nil {
		return err
	}
	force, err := boolParam(c, "force", false)
	if err != nil {
		return err
	}
	err = s.Manager.DeleteSecret(c.Request().Context(), team, c.Param("name"), force)
	s.auditSecret(c, team, err)
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
