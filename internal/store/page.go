package store

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/skerry-dev/skerry"
)

// cursor is where a page ended: the sort key and the id of its last row. A
// page that goes on from there is not disturbed by rows that come or go.
type cursor struct {
	Version int    `json:"v"`
	Order   string `json:"o"`
	Int     int64  `json:"i,omitempty"`
	Text    string `json:"t,omitempty"`
	ID      string `json:"id"`
}

const cursorVersion = 1

// listing is a query that is read page by page.
type listing struct {
	// key is the column that rows are ordered by, before their id.
	key  string
	text bool
	page skerry.Page
	// where and args are the conditions.
	where []string
	args  []any
}

func (l *listing) order() string {
	if l.page.Ascending {
		return l.key + " asc"
	}
	return l.key + " desc"
}

func (l *listing) and(cond string, args ...any) {
	l.where = append(l.where, cond)
	l.args = append(l.args, args...)
}

// build returns the query's tail. It asks for one row more than the page has,
// which tells whether there is a next page.
func (l *listing) build(table string) (string, []any, error) {
	op, dir := "<", "DESC"
	if l.page.Ascending {
		op, dir = ">", "ASC"
	}
	if l.page.Cursor != "" {
		c, err := l.decode()
		if err != nil {
			return "", nil, err
		}
		var key any = c.Int
		if l.text {
			key = c.Text
		}
		l.and(fmt.Sprintf("(%[1]s.%[2]s, %[1]s.id) %[3]s (?, ?)", table, l.key, op), key, c.ID)
	}
	q := fmt.Sprintf("WHERE %[3]s ORDER BY %[1]s.%[2]s %[4]s, %[1]s.id %[4]s LIMIT %[5]d",
		table, l.key, strings.Join(l.where, " AND "), dir, l.page.Size()+1)
	return q, l.args, nil
}

func (l *listing) decode() (cursor, error) {
	var c cursor
	b, err := base64.RawURLEncoding.DecodeString(l.page.Cursor)
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil || c.Version != cursorVersion {
		return c, skerry.Invalid("cursor", "is not a cursor that a listing returned")
	}
	if c.Order != l.order() {
		return c, skerry.Invalid("cursor", "belongs to a listing with another order")
	}
	return c, nil
}

// next returns the cursor behind a row.
func (l *listing) next(key any, id string) string {
	c := cursor{Version: cursorVersion, Order: l.order(), ID: id}
	switch k := key.(type) {
	case int64:
		c.Int = k
	case string:
		c.Text = k
	}
	b, err := json.Marshal(c)
	if err != nil {
		panic(err) // plain fields
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// cut splits off the row too many and returns the cursor of the next page, ""
// if there is none.
func cut[T any](l *listing, rows []T, key func(*T) (any, string)) ([]T, string) {
	size := l.page.Size()
	if len(rows) <= size {
		return rows, ""
	}
	rows = rows[:size]
	return rows, l.next(key(&rows[size-1]))
}

// readPage reads one page of a table with query, which gets the clauses behind its
// FROM, and returns the cursor of the next.
func readPage[T any](
	ctx context.Context, l *listing, table string, query func(ctx context.Context, tail string, args ...any) ([]T, error), key func(*T) (any, string),
) ([]T, string, error) {
	tail, args, err := l.build(table)
	if err != nil {
		return nil, "", err
	}
	list, err := query(ctx, tail, args...)
	if err != nil {
		return nil, "", err
	}
	list, next := cut(l, list, key)
	return list, next, nil
}
