package store

import (
	"bytes"
	"context"
	"slices"
	"sort"
	"strings"

	"gorm.io/gorm"

	"github.com/industriverse/llmmodelmanager/internal/registry"
)

// ListModels returns a page of the models that match q, in the order of their ids without regard to case. A filter
// that names what does not exist matches nothing and is no error.
func (s *Store) ListModels(ctx context.Context, q ListQuery) (Page, error) {
	const op = "store.ListModels"
	q.Limit = pageLimit(q.Limit)
	page, keys, more, err := s.pageKeys(ctx, q)
	if err != nil || len(keys) == 0 {
		return page, s.fail(ctx, op, err)
	}
	if page.Items, err = listed(s.readAll(ctx), keys); err != nil {
		return Page{}, s.fail(ctx, op, err)
	}
	if more {
		page.Next = keys[len(keys)-1] // as good as the id, should the model have been deleted just now
		if n := len(page.Items); n > 0 && fold(page.Items[n-1].ModelID) == page.Next {
			page.Next = page.Items[n-1].ModelID
		}
	}
	// The rows may be newer than the keys: a model that no longer matches is left out.
	page.Items = slices.DeleteFunc(page.Items, func(l Listed) bool { return !q.matches(l) })
	return page, nil
}

// CountMatching returns how many models match q, on all pages. As in Page.Total, the hits of a search are counted up to
// a thousand.
func (s *Store) CountMatching(ctx context.Context, q ListQuery) (int, error) {
	q.Limit, q.After, q.NoTotal = 1, "", false
	page, _, _, err := s.pageKeys(ctx, q)
	return page.Total, s.fail(ctx, "store.CountMatching", err)
}

func (q ListQuery) matches(l Listed) bool {
	return (q.Team == "" || l.Team == q.Team) && (q.Teams == nil || slices.Contains(q.Teams, l.Team)) &&
		(q.Status == "" || l.Status == q.Status) && (q.SourceType == "" || l.SourceType == q.SourceType)
}

// pageKeys finds the keys of the page in the index. Before that is built, a list without a search is answered from the
// file and a search waits, which takes no longer than reading every row would.
func (s *Store) pageKeys(ctx context.Context, q ListQuery) (page Page, keys []string, more bool, err error) {
	select {
	case <-s.closing:
		return page, nil, false, errClosed
	default:
	}
	v := s.index.current()
	if v == nil && q.Q == "" {
		err = s.read(ctx).Transaction(func(tx *gorm.DB) error {
			keys, err = storedKeys(tx, q, &page.Total, &more)
			return err
		})
		return page, keys, more, err
	}
	if v == nil {
		if v, err = s.awaitIndex(ctx); err != nil {
			return page, nil, false, err
		}
	}
	keys, more, page.Total, page.Capped = v.search(q)
	return page, keys, more, nil
}

// storedKeys is the search of the index without words, in SQL.
func storedKeys(tx *gorm.DB, q ListQuery, total *int, more *bool) ([]string, error) {
	where := tx.Model(&modelRow{})
	if q.Team != "" {
		where = where.Where("team = ?", q.Team)
	}
	if q.Teams != nil {
		where = where.Where("team IN ?", q.Teams)
	}
	if q.Status != "" {
		where = where.Where("status = ?", string(q.Status))
	}
	if q.SourceType != "" {
		where = where.Where("source_type = ?", string(q.SourceType))
	}
	where = where.Session(&gorm.Session{})
	var n int64
	if err := where.Count(&n).Error; err != nil {
		return nil, err
	}
	var keys []string
	if err := where.Where("fold_id > ?", fold(q.After)).Order("fold_id").Limit(q.Limit+1).Pluck("fold_id", &keys).Error; err != nil {
		return nil, err
	}
	*total = int(n)
	if len(keys) > q.Limit {
		keys, *more = keys[:q.Limit], true
	}
	return keys, nil
}

// Listed returns a model with what is known of its instance. CodeNotFound as with Model.
func (s *Store) Listed(ctx context.Context, id string) (Listed, error) {
	const op = "store.Listed"
	found, err := listed(s.readAll(ctx), []string{fold(id)})
	if err != nil {
		return Listed{}, s.fail(ctx, op, err)
	}
	found = append(found, Listed{}) // in case there is none
	if err := notFound(id, found[0].ModelID); err != nil {
		return Listed{}, s.fail(ctx, op, err)
	}
	return found[0], nil
}

// listed reads the models of these keys, which are sorted, with their runtimes, in the order of the keys, all as they are
// at one moment. Keys without a model are passed over.
func listed(db *gorm.DB, keys []string) ([]Listed, error) {
	in, err := toJSON(&keys)
	if err != nil {
		return nil, err
	}
	// The rows come in any order. found[i] is the model of keys[i]; it has no id where there is none.
	found := make([]Listed, len(keys))
	err = eachRow(db.Raw(selectListed, in), (*listedRow).fields, func(row *listedRow) (err error) {
		if at, ok := slices.BinarySearch(keys, row.model.FoldID); ok {
			found[at], err = listedOf(&row.model, &row.runtime)
		}
		return err
	})
	return slices.DeleteFunc(found, func(l Listed) bool { return l.ModelID == "" }), err
}

func listedOf(row *modelRow, rt *runtimeRow) (Listed, error) {
	rec, err := row.record()
	if err != nil {
		return Listed{}, err
	}
	run, err := rt.runtime()
	if err != nil {
		return Listed{}, err
	}
	run = orStopped(run, rec.ModelID)
	return Listed{Record: rec, Runtime: run, Status: registry.DeriveStatus(rec.Registration, run.Artifact, run.State)}, nil
}

// countedHits is how far the hits of a search are counted. Looking for words in everything takes milliseconds when there
// are a hundred thousand models, and nobody asks whether forty or fifty thousand have an e in them.
const countedHits = 1000

// search returns the keys of the page that q asks for, whether there are more after it, how many match in all, unless
// q.NoTotal, and whether that count was given up.
func (v *version) search(q ListQuery) (keys []string, more bool, hits int, capped bool) {
	f, possible := v.filter(q)
	if !possible {
		return nil, false, 0, false
	}
	// Without words the total is known beforehand, and the page ends the search.
	enough, known := -1, 0
	switch {
	case len(f.words) > 0 && !q.NoTotal:
		enough = countedHits
	case len(f.words) == 0:
		if known = v.tallies.count(f); known == 0 {
			return nil, false, 0, false
		}
	}
	total := 0
	after, first := fold(q.After), 0
	if after != "" {
		// The page begins in the last block whose first key is not after it.
		first = max(0, sort.Search(len(v.blocks), func(i int) bool { return string(v.blocks[i].key(0)) > after })-1)
	}
	for i, b := range v.blocks {
		switch {
		case i >= first && !more:
			b.each(f, func(i int) {
				total++
				switch {
				case after != "" && string(b.key(i)) <= after:
				case len(keys) < q.Limit:
					keys = append(keys, string(b.key(i)))
				default:
					more = true
				}
			})
		case total <= enough: // one more than enough shows that it is not all
			b.each(f, func(int) { total++ })
		}
		if (more && total > enough) || (total == known && known > 0) {
			break
		}
	}
	switch {
	case q.NoTotal:
		return keys, more, 0, false
	case len(f.words) == 0:
		return keys, more, known, false
	}
	return keys, more, min(total, enough), total > enough
}

// filter is what a query asks of a model. Zero values ask for nothing.
type filter struct {
	words  [][]byte // all of which the text has, the longest first
	grams  grams    // of all words
	teams  []bool   // by number; nil is all
	source uint8
	status uint8
}

// filter returns false when no model can match.
func (v *version) filter(q ListQuery) (*filter, bool) {
	f := &filter{}
	if strings.ContainsAny(q.Q, string([]byte{fieldSep, entrySep})) {
		return f, false
	}
	for _, w := range strings.Fields(fold(q.Q)) {
		f.words = append(f.words, []byte(w))
		f.grams.add([]byte(w))
	}
	// The longest word is the rarest as a rule: it is looked for, and the others are tested where it is found.
	slices.SortStableFunc(f.words, func(a, b []byte) int { return len(b) - len(a) })
	if q.SourceType != "" {
		if f.source = sourceNumber(q.SourceType); f.source == 0 {
			return f, false
		}
	}
	if q.Status != "" {
		if f.status = statusNumber(q.Status); f.status == 0 {
			return f, false
		}
	}
	if q.Team == "" && q.Teams == nil {
		return f, true
	}
	f.teams = make([]bool, len(v.teams)+1)
	possible := false
	for name, n := range v.teams {
		if (q.Team == "" || q.Team == name) && (q.Teams == nil || slices.Contains(q.Teams, name)) {
			f.teams[n], possible = true, true
		}
	}
	return f, possible
}

func (f *filter) match(b *block, i int) bool {
	return (f.status == 0 || b.status[i] == f.status) && (f.source == 0 || b.source[i] == f.source) &&
		(f.teams == nil || f.teams[b.team[i]])
}

// each calls fn with every model of the block that passes the filter, in order.
func (b *block) each(f *filter, fn func(i int)) {
	if f.status != 0 && b.statuses&(1<<f.status) == 0 {
		return
	}
	if len(f.words) == 0 {
		for i := range b.len() {
			if f.match(b, i) {
				fn(i)
			}
		}
		return
	}
	if !b.grams.mayHold(&f.grams) {
		return
	}
	for i, from := 0, 0; ; i++ {
		at := bytes.Index(b.text[from:], f.words[0])
		if at < 0 {
			return
		}
		for at += from; int(b.start[i+1]) <= at; i++ { // to the model that it was found in
		}
		if f.match(b, i) && hasAll(b.entry(i), f.words[1:]) {
			fn(i)
		}
		from = int(b.start[i+1])
	}
}

func hasAll(text []byte, words [][]byte) bool {
	for _, w := range words {
		if !bytes.Contains(text, w) {
			return false
		}
	}
	return true
}
