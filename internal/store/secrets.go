package store

import (
	"context"
	"fmt"
	"strings"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

type secretRow struct {
	Team      string `gorm:"column:team;primaryKey"`
	Name      string `gorm:"column:name;primaryKey"`
	Value     string `gorm:"column:value"`
	Updated   int64  `gorm:"column:updated_at"`
	UpdatedBy string `gorm:"column:updated_by"`
}

func (secretRow) TableName() string { return "secrets" }

// SecretValue returns the value of a stored secret that models of this team may use: the team's own, else that of every
// team. ok is false when there is none.
func (s *Store) SecretValue(ctx context.Context, team, name string) (value string, ok bool, err error) {
	var row secretRow
	ok, err = take(s.read(ctx).Where("name = ? AND team IN (?, '')", name, team).Order("team DESC"), &row)
	return row.Value, ok, s.fail(ctx, "store.SecretValue", err)
}

// ListSecrets returns the secrets of these teams (nil: all) and those of every team, by name, without their values.
func (s *Store) ListSecrets(ctx context.Context, teams []string) ([]registry.Secret, error) {
	query := s.read(ctx).Select("team", "name", "updated_at", "updated_by").Order("name, team")
	if teams != nil {
		query = query.Where("team IN ?", append([]string{""}, teams...))
	}
	var rows []secretRow
	if err := query.Find(&rows).Error; err != nil {
		return nil, s.fail(ctx, "store.ListSecrets", err)
	}
	out := make([]registry.Secret, len(rows))
	for i, r := range rows {
		out[i] = registry.Secret{Name: r.Name, Team: r.Team, UpdatedAt: fromNanos(r.Updated), UpdatedBy: r.UpdatedBy}
	}
	return out, nil
}

// PutSecret stores a secret, new or not, and reports whether it is new. CodeNotFound when there is no such team.
func (s *Store) PutSecret(ctx context.Context, secret registry.Secret, value string) (created bool, err error) {
	row := secretRow{Team: secret.Team, Name: secret.Name, Value: value, Updated: toNanos(s.now()), UpdatedBy: secret.UpdatedBy}
	err = s.write(ctx, "store.PutSecret", func(tx *txn) error {
		if secret.Team != "" {
			var n int64
			if err := tx.Table("teams").Where("name = ?", secret.Team).Count(&n).Error; err != nil {
				return err
			}
			if n == 0 {
				return registry.Errorf(registry.CodeNotFound, "There is no team %q", secret.Team)
			}
		}
		var old secretRow
		had, err := take(tx.Where("team = ? AND name = ?", secret.Team, secret.Name), &old)
		if err != nil {
			return err
		}
		created = !had
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error
	})
	return created, err
}

// SecretKey names one secret; Team is "" for one of every team.
type SecretKey struct{ Team, Name string }

// SecretUsers returns the ids of the models that use each secret, in order: those that refer to its name and whose team
// has that very one. teams narrows the models; nil is all of them.
func (s *Store) SecretUsers(ctx context.Context, teams []string) (map[SecretKey][]string, error) {
	users, err := secretUsers(s.read(ctx), teams)
	return users, s.fail(ctx, "store.SecretUsers", err)
}

func secretUsers(db *gorm.DB, teams []string) (map[SecretKey][]string, error) {
	var secrets []secretRow
	if err := db.Session(&gorm.Session{NewDB: true}).Select("team", "name").Find(&secrets).Error; err != nil {
		return nil, err
	}
	have := make(map[SecretKey]bool, len(secrets))
	for _, r := range secrets {
		have[SecretKey{r.Team, r.Name}] = true
	}
	var rows []struct {
		ModelID, Team, CustomLoaderParams string
	}
	query := db.Session(&gorm.Session{NewDB: true}).Model(&modelRow{}).Select("model_id", "team", "custom_loader_params").
		Where(`custom_loader_params LIKE '%"secret:%'`).Order("model_id")
	if teams != nil {
		query = query.Where("team IN ?", teams)
	}
	if err := query.Find(&rows).Error; err != nil {
		return nil, err
	}
	out := map[SecretKey][]string{}
	for _, r := range rows {
		params, err := paramsFromJSON(r.CustomLoaderParams)
		if err != nil {
			return nil, err
		}
		for _, name := range registry.SecretNames(params) {
			key := SecretKey{r.Team, name}
			if !have[key] {
				key.Team = ""
			}
			if have[key] {
				out[key] = append(out[key], r.ModelID)
			}
		}
	}
	return out, nil
}

// DeleteSecret removes a secret. CodeNotFound when there is none of that name and team; CodeConflict when models use it,
// unless force is set.
func (s *Store) DeleteSecret(ctx context.Context, team, name string, force bool) error {
	return s.write(ctx, "store.DeleteSecret", func(tx *txn) error {
		if !force { // in the transaction: no model begins to use it meanwhile
			users, err := secretUsers(tx.DB, nil)
			if err != nil {
				return err
			}
			if ids := users[SecretKey{team, name}]; len(ids) > 0 {
				return registry.Errorf(registry.CodeConflict, "The secret %s is used by %s. Let them refer to another one first, or delete it with force: they can then neither be fetched nor loaded anew until there is another secret of this name", name, some(ids))
			}
		}
		gone := tx.Delete(&secretRow{}, "team = ? AND name = ?", team, name)
		if gone.Error == nil && gone.RowsAffected == 0 {
			return registry.Errorf(registry.CodeNotFound, "There is no secret %q of that team. List the secrets to see their names and teams", name)
		}
		return gone.Error
	})
}

// some names the first few models of a list.
func some(ids []string) string {
	const show = 5
	if len(ids) <= show {
		return strings.Join(ids, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(ids[:show], ", "), len(ids)-show)
}
