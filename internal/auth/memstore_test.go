package auth_test

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/alexedwards/scs/v2"

	"github.com/industriverse/llmmodelmanager/internal/auth"
	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// memStore is an auth.Store in memory, with the promises of the real one.
type memStore struct {
	mu       sync.Mutex
	users    map[string]registry.User
	teams    map[string]registry.Team
	members  map[registry.Member]struct{}
	tokens   map[string]registry.Token
	sessions map[string]memSession
	audit    []registry.AuditEntry

	tokenReads, userReads, touches, commits atomic.Int64
}

type memSession struct {
	data   []byte
	expiry time.Time
}

func newMemStore() *memStore {
	return &memStore{
		users: map[string]registry.User{}, teams: map[string]registry.Team{}, members: map[registry.Member]struct{}{},
		tokens: map[string]registry.Token{}, sessions: map[string]memSession{},
	}
}

var _ auth.Store = (*memStore)(nil)

func notFound() error { return registry.Errorf(registry.CodeNotFound, "not there") }
func conflict() error { return registry.Errorf(registry.CodeConflict, "there already") }

func (m *memStore) CountUsers(context.Context) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.users), nil
}

func (m *memStore) CreateUser(_ context.Context, u registry.User) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.create(u)
}

func (m *memStore) create(u registry.User) error {
	for _, o := range m.users {
		if o.ID == u.ID || o.Name == u.Name {
			return conflict()
		}
	}
	m.users[u.ID] = u
	return nil
}

func (m *memStore) CreateFirstUser(_ context.Context, u registry.User) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.users) > 0 {
		return conflict()
	}
	return m.create(u)
}

func (m *memStore) User(_ context.Context, id string) (registry.User, error) {
	m.userReads.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	u, ok := m.users[id]
	if !ok {
		return u, notFound()
	}
	return u, nil
}

func (m *memStore) UserByName(_ context.Context, name string) (registry.User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, u := range m.users {
		if u.Name == name {
			return u, nil
		}
	}
	return registry.User{}, notFound()
}

func (m *memStore) ListUsers(context.Context) ([]registry.User, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.users), func(a, b registry.User) int { return cmp.Compare(a.Name, b.Name) }), nil
}

func (m *memStore) UpdateUser(_ context.Context, u registry.User) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.users[u.ID]; !ok {
		return notFound()
	}
	m.users[u.ID] = u
	return nil
}

func (m *memStore) DeleteUser(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.users[id]; !ok {
		return notFound()
	}
	delete(m.users, id)
	maps.DeleteFunc(m.tokens, func(_ string, t registry.Token) bool { return t.UserID == id })
	maps.DeleteFunc(m.members, func(k registry.Member, _ struct{}) bool { return k.UserID == id })
	return nil
}

func (m *memStore) EnsureTeam(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.teams[name]; !ok {
		m.teams[name] = registry.Team{Name: name}
	}
	return nil
}

func (m *memStore) ListTeams(context.Context) ([]registry.Team, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.SortedFunc(maps.Values(m.teams), func(a, b registry.Team) int { return cmp.Compare(a.Name, b.Name) }), nil
}

func (m *memStore) DeleteTeam(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.teams[name]; !ok {
		return notFound()
	}
	delete(m.teams, name)
	maps.DeleteFunc(m.members, func(k registry.Member, _ struct{}) bool { return k.Team == name })
	return nil
}

func (m *memStore) SetMember(_ context.Context, mem registry.Member) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.members, func(k registry.Member, _ struct{}) bool { return k.Team == mem.Team && k.UserID == mem.UserID })
	if mem.Role != "" {
		m.members[mem] = struct{}{}
	}
	return nil
}

func (m *memStore) Members(_ context.Context, team string) ([]registry.Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []registry.Member
	for k := range m.members {
		if k.Team == team {
			out = append(out, k)
		}
	}
	return out, nil
}

func (m *memStore) Memberships(_ context.Context, userID string) (map[string]registry.Role, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]registry.Role{}
	for k := range m.members {
		if k.UserID == userID {
			out[k.Team] = k.Role
		}
	}
	return out, nil
}

func (m *memStore) CreateToken(_ context.Context, t registry.Token) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tokens[t.ID] = t
	return nil
}

func (m *memStore) TokenByHash(_ context.Context, hash []byte) (registry.Token, error) {
	m.tokenReads.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tokens {
		if slices.Equal(t.Hash, hash) {
			return t, nil
		}
	}
	return registry.Token{}, notFound()
}

func (m *memStore) ListTokens(_ context.Context, userID string) ([]registry.Token, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []registry.Token
	for _, t := range m.tokens {
		if t.UserID == userID {
			out = append(out, t)
		}
	}
	return out, nil
}

func (m *memStore) DeleteToken(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.tokens, id)
	return nil
}

func (m *memStore) TouchToken(_ context.Context, id string, at time.Time) error {
	m.touches.Add(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	t, ok := m.tokens[id]
	if !ok {
		return notFound()
	}
	t.LastUsedAt = at
	m.tokens[id] = t
	return nil
}

func (m *memStore) Audit(_ context.Context, e registry.AuditEntry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.audit = append(m.audit, e)
	return nil
}

func (m *memStore) entries() []registry.AuditEntry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.audit)
}

func (m *memStore) Sessions() scs.CtxStore { return memSessions{m} }

type memSessions struct{ m *memStore }

func (s memSessions) Delete(token string) error { return s.DeleteCtx(context.Background(), token) }
func (s memSessions) Find(token string) ([]byte, bool, error) {
	return s.FindCtx(context.Background(), token)
}

func (s memSessions) Commit(token string, b []byte, expiry time.Time) error {
	return s.CommitCtx(context.Background(), token, b, expiry)
}

func (s memSessions) DeleteCtx(_ context.Context, token string) error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	delete(s.m.sessions, token)
	return nil
}

func (s memSessions) FindCtx(_ context.Context, token string) ([]byte, bool, error) {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	e, ok := s.m.sessions[token]
	return e.data, ok, nil
}

func (s memSessions) CommitCtx(_ context.Context, token string, b []byte, expiry time.Time) error {
	s.m.commits.Add(1)
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.m.sessions[token] = memSession{slices.Clone(b), expiry}
	return nil
}
