package store

import (
	"bytes"
	"context"
	"slices"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

type userRow struct {
	ID           string `gorm:"column:id;primaryKey"`
	FoldName     string `gorm:"column:fold_name"`
	Name         string `gorm:"column:name"`
	Admin        bool   `gorm:"column:admin"`
	Disabled     bool   `gorm:"column:disabled"`
	PasswordHash string `gorm:"column:password_hash"`
	Created      int64  `gorm:"column:created_at"`
	LastSeen     int64  `gorm:"column:last_seen_at"`
}

func (userRow) TableName() string { return "users" }

func userRowOf(u registry.User) userRow {
	return userRow{ID: u.ID, FoldName: fold(u.Name), Name: u.Name, Admin: u.Admin, Disabled: u.Disabled, PasswordHash: u.PasswordHash,
		Created: toNanos(u.CreatedAt), LastSeen: toNanos(u.LastSeenAt)}
}

func (r userRow) user() registry.User {
	return registry.User{ID: r.ID, Name: r.Name, Admin: r.Admin, Disabled: r.Disabled, PasswordHash: r.PasswordHash,
		CreatedAt: fromNanos(r.Created), LastSeenAt: fromNanos(r.LastSeen)}
}

// CountUsers returns how many accounts there are.
func (s *Store) CountUsers(ctx context.Context) (int, error) {
	n, err := countUsers(s.read(ctx))
	return n, s.fail(ctx, "store.CountUsers", err)
}

func countUsers(db *gorm.DB) (int, error) {
	var n int64
	err := db.Model(&userRow{}).Count(&n).Error
	return int(n), err
}

// CreateUser makes an account. CodeConflict if the name is taken, in whatever case.
func (s *Store) CreateUser(ctx context.Context, u registry.User) error {
	return s.write(ctx, "store.CreateUser", func(tx *txn) error { return s.createUser(tx.DB, u) })
}

// CreateFirstUser makes an account if there is none at all, and returns CodeConflict otherwise. However many call it at once, one
// succeeds.
func (s *Store) CreateFirstUser(ctx context.Context, u registry.User) error {
	return s.write(ctx, "store.CreateFirstUser", func(tx *txn) error {
		n, err := countUsers(tx.DB)
		if err != nil {
			return err
		}
		if n > 0 {
			return registry.Errorf(registry.CodeConflict, "The first account has been made already. Sign in, or ask an admin for an account")
		}
		return s.createUser(tx.DB, u)
	})
}

func (s *Store) createUser(db *gorm.DB, u registry.User) error {
	if u.ID == "" || u.Name == "" {
		return registry.Errorf(registry.CodeInvalid, "An account needs an id and a name")
	}
	if u.CreatedAt.IsZero() {
		u.CreatedAt = s.now()
	}
	if err := nameIsFree(db, u); err != nil {
		return err
	}
	var other userRow
	if taken, err := take(db.Where("id = ?", u.ID), &other); err != nil {
		return err
	} else if taken {
		return registry.Errorf(registry.CodeConflict, "The account %q has this id already", other.Name)
	}
	row := userRowOf(u)
	return db.Create(&row).Error
}

// nameIsFree returns CodeConflict when another account has the name of u.
func nameIsFree(db *gorm.DB, u registry.User) error {
	var other userRow
	taken, err := take(db.Where("fold_name = ? AND id <> ?", fold(u.Name), u.ID), &other)
	if err == nil && taken {
		return registry.Errorf(registry.CodeConflict, "The name %q is taken by the account %q. Choose another", u.Name, other.Name)
	}
	return err
}

// User returns the account of that id, or CodeNotFound.
func (s *Store) User(ctx context.Context, id string) (registry.User, error) {
	row, err := findUser(s.read(ctx), id)
	return row.user(), s.fail(ctx, "store.User", err)
}

func findUser(db *gorm.DB, id string) (userRow, error) {
	var row userRow
	found, err := take(db.Where("id = ?", id), &row)
	if err == nil && !found {
		err = registry.Errorf(registry.CodeNotFound, "There is no such account. It may have been deleted")
	}
	return row, err
}

// UserByName returns the account of that name, in whatever case, or CodeNotFound.
func (s *Store) UserByName(ctx context.Context, name string) (registry.User, error) {
	var row userRow
	found, err := take(s.read(ctx).Where("fold_name = ?", fold(name)), &row)
	if err == nil && !found {
		err = registry.Errorf(registry.CodeNotFound, "There is no account named %q", name)
	}
	return row.user(), s.fail(ctx, "store.UserByName", err)
}

// ListUsers returns every account in the order of their names.
func (s *Store) ListUsers(ctx context.Context) ([]registry.User, error) {
	var rows []userRow
	err := s.read(ctx).Order("fold_name").Find(&rows).Error
	out := make([]registry.User, len(rows))
	for i, r := range rows {
		out[i] = r.user()
	}
	return out, s.fail(ctx, "store.ListUsers", err)
}

// UpdateUser stores a changed account. CodeNotFound; CodeConflict if the new name is taken; CodeBadState if no enabled admin would
// be left.
func (s *Store) UpdateUser(ctx context.Context, u registry.User) error {
	return s.write(ctx, "store.UpdateUser", func(tx *txn) error {
		if _, err := findUser(tx.DB, u.ID); err != nil {
			return err
		}
		if err := nameIsFree(tx.DB, u); err != nil {
			return err
		}
		return keepAnAdmin(tx.DB, func() error {
			row := userRowOf(u)
			return tx.Save(&row).Error
		})
	})
}

// DeleteUser removes an account with its memberships and tokens. CodeNotFound; CodeBadState if no enabled admin would be left.
func (s *Store) DeleteUser(ctx context.Context, id string) error {
	return s.write(ctx, "store.DeleteUser", func(tx *txn) error {
		if _, err := findUser(tx.DB, id); err != nil {
			return err
		}
		return keepAnAdmin(tx.DB, func() error { return tx.Delete(&userRow{}, "id = ?", id).Error })
	})
}

// keepAnAdmin makes the change unless it would take away the last admin who can sign in; the transaction is then to be
// given up.
func keepAnAdmin(db *gorm.DB, change func() error) error {
	admins := func() (n int64, err error) {
		err = db.Model(&userRow{}).Where("admin AND NOT disabled").Count(&n).Error
		return n, err
	}
	before, err := admins()
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	after, err := admins()
	if err == nil && before > 0 && after == 0 {
		err = registry.Errorf(registry.CodeBadState, "This is the last enabled admin. Make another account an admin first")
	}
	return err
}

type teamRow struct {
	Name    string `gorm:"column:name;primaryKey"`
	Created int64  `gorm:"column:created_at"`
}

func (teamRow) TableName() string { return "teams" }

// EnsureTeam makes the team if there is none of that name. CodeInvalid if it is no name for a team.
func (s *Store) EnsureTeam(ctx context.Context, name string) error {
	return s.write(ctx, "store.EnsureTeam", func(tx *txn) error { return ensureTeam(tx.DB, name, s.now()) })
}

func ensureTeam(db *gorm.DB, name string, now time.Time) error {
	if err := registry.ValidateTeam(name); err != nil {
		return &registry.Error{Code: registry.CodeInvalid, Msg: "The team's name is not valid", Fields: []registry.FieldError{{Field: "team", Msg: err.Error()}}}
	}
	return db.Clauses(clause.OnConflict{DoNothing: true}).Create(&teamRow{Name: name, Created: toNanos(now)}).Error
}

// ListTeams returns every team in the order of their names.
func (s *Store) ListTeams(ctx context.Context) ([]registry.Team, error) {
	rows, err := scanRows(s.readAll(ctx).Raw("SELECT name, created_at FROM teams ORDER BY name"), func(r *teamRow) []any { return []any{&r.Name, &r.Created} })
	out := make([]registry.Team, len(rows))
	for i, r := range rows {
		out[i] = registry.Team{Name: r.Name, CreatedAt: fromNanos(r.Created)}
	}
	return out, s.fail(ctx, "store.ListTeams", err)
}

// DeleteTeam removes a team and its memberships. CodeNotFound; CodeBadState when models belong to it, and for the default team.
func (s *Store) DeleteTeam(ctx context.Context, name string) error {
	return s.write(ctx, "store.DeleteTeam", func(tx *txn) error {
		if name == registry.DefaultTeam {
			return registry.Errorf(registry.CodeBadState, "The team %q cannot be deleted: models for which no team is given belong to it", name)
		}
		if err := teamExists(tx.DB, name); err != nil {
			return err
		}
		var models int64
		if err := tx.Model(&modelRow{}).Where("team = ?", name).Count(&models).Error; err != nil {
			return err
		}
		if models > 0 {
			return registry.Errorf(registry.CodeBadState, "The team %q owns %d models. Delete them or give them to another team first", name, models)
		}
		return tx.Delete(&teamRow{}, "name = ?", name).Error
	})
}

func teamExists(db *gorm.DB, name string) error {
	var row teamRow
	found, err := take(db.Where("name = ?", name), &row)
	if err == nil && !found {
		err = registry.Errorf(registry.CodeNotFound, "There is no team %q", name)
	}
	return err
}

type memberRow struct {
	Team   string `gorm:"column:team;primaryKey"`
	UserID string `gorm:"column:user_id;primaryKey"`
	Role   string `gorm:"column:role"`
}

func (memberRow) TableName() string { return "members" }

// SetMember gives an account a role in a team; the role "" takes it out of the team. CodeNotFound if there is no such team or
// account, CodeInvalid if there is no such role.
func (s *Store) SetMember(ctx context.Context, m registry.Member) error {
	return s.write(ctx, "store.SetMember", func(tx *txn) error {
		if err := teamExists(tx.DB, m.Team); err != nil {
			return err
		}
		if _, err := findUser(tx.DB, m.UserID); err != nil {
			return err
		}
		switch {
		case m.Role == "":
			return tx.Delete(&memberRow{}, "team = ? AND user_id = ?", m.Team, m.UserID).Error
		case !slices.Contains(registry.Roles, m.Role):
			return registry.Errorf(registry.CodeInvalid, "There is no role %q; choose one of %v", m.Role, registry.Roles)
		}
		row := memberRow{Team: m.Team, UserID: m.UserID, Role: string(m.Role)}
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error
	})
}

// Members returns who belongs to a team, in the order of the accounts' ids; nobody if there is no such team.
func (s *Store) Members(ctx context.Context, team string) ([]registry.Member, error) {
	var rows []memberRow
	err := s.read(ctx).Where("team = ?", team).Order("user_id").Find(&rows).Error
	out := make([]registry.Member, len(rows))
	for i, r := range rows {
		out[i] = registry.Member{Team: r.Team, UserID: r.UserID, Role: registry.Role(r.Role)}
	}
	return out, s.fail(ctx, "store.Members", err)
}

// Memberships returns an account's role in each of its teams.
func (s *Store) Memberships(ctx context.Context, userID string) (map[string]registry.Role, error) {
	var rows []memberRow
	err := s.read(ctx).Where("user_id = ?", userID).Find(&rows).Error
	out := make(map[string]registry.Role, len(rows))
	for _, r := range rows {
		out[r.Team] = registry.Role(r.Role)
	}
	return out, s.fail(ctx, "store.Memberships", err)
}

type tokenRow struct {
	ID       string `gorm:"column:id;primaryKey"`
	UserID   string `gorm:"column:user_id"`
	Name     string `gorm:"column:name"`
	Prefix   string `gorm:"column:prefix"`
	Hash     []byte `gorm:"column:hash"`
	Created  int64  `gorm:"column:created_at"`
	LastUsed int64  `gorm:"column:last_used_at"`
	Expires  int64  `gorm:"column:expires_at"`
}

func (tokenRow) TableName() string { return "tokens" }

func (r tokenRow) token() registry.Token {
	return registry.Token{ID: r.ID, UserID: r.UserID, Name: r.Name, Prefix: r.Prefix, Hash: r.Hash,
		CreatedAt: fromNanos(r.Created), LastUsedAt: fromNanos(r.LastUsed), ExpiresAt: fromNanos(r.Expires)}
}

// CreateToken stores an API token. CodeNotFound if there is no such account, CodeConflict if the id or the hash is
// taken.
func (s *Store) CreateToken(ctx context.Context, t registry.Token) error {
	return s.write(ctx, "store.CreateToken", func(tx *txn) error {
		if _, err := findUser(tx.DB, t.UserID); err != nil {
			return err
		}
		var other tokenRow
		taken, err := take(tx.Where("id = ? OR hash = ?", t.ID, t.Hash), &other)
		if err != nil {
			return err
		}
		if taken {
			return registry.Errorf(registry.CodeConflict, "This token exists already. Make another")
		}
		if t.CreatedAt.IsZero() {
			t.CreatedAt = s.now()
		}
		return tx.Create(&tokenRow{ID: t.ID, UserID: t.UserID, Name: t.Name, Prefix: t.Prefix, Hash: bytes.Clone(t.Hash),
			Created: toNanos(t.CreatedAt), LastUsed: toNanos(t.LastUsedAt), Expires: toNanos(t.ExpiresAt)}).Error
	})
}

// TokenByHash returns the token with that hash, expired or not, or CodeNotFound.
func (s *Store) TokenByHash(ctx context.Context, hash []byte) (registry.Token, error) {
	var row tokenRow
	found, err := take(s.read(ctx).Where("hash = ?", hash), &row)
	if err == nil && !found {
		err = registry.Errorf(registry.CodeNotFound, "There is no such token. It may have been deleted")
	}
	return row.token(), s.fail(ctx, "store.TokenByHash", err)
}

// ListTokens returns the tokens of an account, or all if userID is "", oldest first.
func (s *Store) ListTokens(ctx context.Context, userID string) ([]registry.Token, error) {
	var rows []tokenRow
	err := whereSet(s.read(ctx), "user_id = ?", userID).Order("created_at, id").Find(&rows).Error
	out := make([]registry.Token, len(rows))
	for i, r := range rows {
		out[i] = r.token()
	}
	return out, s.fail(ctx, "store.ListTokens", err)
}

// DeleteToken removes a token, or returns CodeNotFound.
func (s *Store) DeleteToken(ctx context.Context, id string) error {
	return s.write(ctx, "store.DeleteToken", func(tx *txn) error {
		done := tx.Delete(&tokenRow{}, "id = ?", id)
		if done.Error == nil && done.RowsAffected == 0 {
			return registry.Errorf(registry.CodeNotFound, "There is no such token. It may have been deleted already")
		}
		return done.Error
	})
}

// touchEvery is how exactly the last use of a token is kept. Writing it at every request would make each of them wait for the
// disk.
const touchEvery = time.Minute

// TouchToken notes that a token was used at that time, unless it was noted less than a minute before. It is no error if the token is
// gone.
func (s *Store) TouchToken(ctx context.Context, id string, at time.Time) error {
	const op = "store.TouchToken"
	var row tokenRow
	found, err := take(s.read(ctx).Where("id = ?", id), &row)
	if err != nil || !found || at.Sub(fromNanos(row.LastUsed)) < touchEvery {
		return s.fail(ctx, op, err)
	}
	return s.writeLazily(ctx, op, func(tx *txn) error {
		return tx.Model(&tokenRow{}).Where("id = ?", id).Update("last_used_at", toNanos(at)).Error
	})
}
