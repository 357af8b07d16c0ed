package store

import (
	"reflect"
	"sync"
	"testing"

	"gorm.io/gorm/schema"
)

// The columns that are scanned by hand are those of the row types, each read into its own field.
func TestColumns(t *testing.T) {
	check := func(row any, columns []string, fields []any) {
		t.Helper()
		s, err := schema.Parse(row, &sync.Map{}, schema.NamingStrategy{})
		if err != nil {
			t.Fatal(err)
		}
		if len(columns) != len(s.DBNames) || len(fields) != len(columns) {
			t.Fatalf("%d columns and %d fields are scanned, the table has %d", len(columns), len(fields), len(s.DBNames))
		}
		value := reflect.ValueOf(row).Elem()
		for i, name := range columns {
			f := s.FieldsByDBName[name]
			if f == nil {
				t.Errorf("there is no column %s", name)
				continue
			}
			if want := value.FieldByIndex(f.StructField.Index).Addr().Interface(); fields[i] != want {
				t.Errorf("column %s is read into another field", name)
			}
		}
	}
	m, r := &modelRow{}, &runtimeRow{}
	check(m, modelColumns, m.fields())
	check(r, runtimeColumns, r.fields())
}
