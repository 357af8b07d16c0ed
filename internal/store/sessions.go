package store

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/alexedwards/scs/v2"
	"gorm.io/gorm/clause"
)

type sessionRow struct {
	TokenHash []byte `gorm:"column:token_hash;primaryKey"`
	Data      []byte `gorm:"column:data"`
	Expiry    int64  `gorm:"column:expiry"`
}

func (sessionRow) TableName() string { return "sessions" }

// Sessions returns the store of sign-in sessions. Only a hash of each token is kept, so a copy of the file signs nobody
// in. Expired sessions are not found, and are removed when one is written.
func (s *Store) Sessions() scs.CtxStore { return sessions{s} }

type sessions struct{ s *Store }

func sessionKey(token string) []byte {
	h := sha256.Sum256([]byte(token))
	return h[:]
}

func (x sessions) FindCtx(ctx context.Context, token string) (data []byte, found bool, err error) {
	var row sessionRow
	found, err = take(x.s.read(ctx).Where("token_hash = ? AND expiry > ?", sessionKey(token), toNanos(x.s.now())), &row)
	return row.Data, found, x.s.fail(ctx, "store.Sessions.Find", err)
}

func (x sessions) CommitCtx(ctx context.Context, token string, data []byte, expiry time.Time) error {
	return x.s.write(ctx, "store.Sessions.Commit", func(tx *txn) error {
		if err := tx.Delete(&sessionRow{}, "expiry <= ?", toNanos(x.s.now())).Error; err != nil {
			return err
		}
		row := sessionRow{TokenHash: sessionKey(token), Data: data, Expiry: toNanos(expiry)}
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error
	})
}

func (x sessions) DeleteCtx(ctx context.Context, token string) error {
	return x.s.write(ctx, "store.Sessions.Delete", func(tx *txn) error {
		return tx.Delete(&sessionRow{}, "token_hash = ?", sessionKey(token)).Error
	})
}

func (x sessions) Find(token string) ([]byte, bool, error) {
	return x.FindCtx(context.Background(), token)
}
func (x sessions) Delete(token string) error { return x.DeleteCtx(context.Background(), token) }
func (x sessions) Commit(token string, data []byte, expiry time.Time) error {
	return x.CommitCtx(context.Background(), token, data, expiry)
}
