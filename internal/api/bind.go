package api

import (
	"encoding/json"
	"fmt"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/skerry-dev/skerry"
)

// Requests are bound to the types of this package by reflection, so one declaration
// is what the server accepts and what the OpenAPI document says. The tags are:
//
//   - json is the name of the field
//   - required:"true" refuses a request without the field
//   - notnull:"true" refuses an explicit null, which otherwise counts as absent
//   - null:"Field" sets this bool field (json:"-") for an explicit null
//   - enum:"a|b" lists the values
//   - min and max limit an integer, minlen a string, in characters
//   - doc describes the field
//
// Fields that a type does not have are ignored.

// treeBinder is implemented by types with their own JSON form.
type treeBinder interface {
	bindTree(path string, v any) error
}

var (
	binderType   = reflect.TypeFor[treeBinder]()
	durationType = reflect.TypeFor[skerry.Duration]()
)

// bindBody fills dst, a pointer to a struct, from a parsed JSON value.
func bindBody(tree any, dst any) error {
	if b, ok := dst.(treeBinder); ok {
		return b.bindTree("", tree)
	}
	return bindStruct("", tree, reflect.ValueOf(dst).Elem())
}

func bindStruct(path string, tree any, dst reflect.Value) error {
	o, ok := tree.(*jsonObject)
	if !ok {
		if path == "" {
			return skerry.Invalid("", "the body must be a JSON object, not %s", kindOf(tree))
		}
		return wrongType(path, "an object", tree)
	}
	t := dst.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			if err := bindStruct(path, tree, dst.Field(i)); err != nil {
				return err
			}
			continue
		}
		name := fieldName(f)
		if name == "-" {
			continue
		}
		v, given := o.members[name]
		if err := bindField(member(path, name), f, v, given, dst.Field(i)); err != nil {
			return err
		}
		if clear := f.Tag.Get("null"); clear != "" && given && v == nil {
			dst.FieldByName(clear).SetBool(true)
		}
	}
	return nil
}

func bindField(path string, f reflect.StructField, v any, given bool, dst reflect.Value) error {
	if v == nil {
		if f.Tag.Get("required") == "true" {
			return skerry.Invalid(path, "is required")
		}
		if given && f.Tag.Get("notnull") == "true" {
			return skerry.Invalid(path, "must not be null")
		}
		return nil
	}
	if err := bindValue(path, v, dst); err != nil {
		return err
	}
	return checkTags(path, f, dst)
}

func bindValue(path string, v any, dst reflect.Value) error {
	if dst.CanAddr() && dst.Addr().Type().Implements(binderType) {
		return dst.Addr().Interface().(treeBinder).bindTree(path, v)
	}
	if dst.Type() == durationType {
		return bindDuration(path, v, dst)
	}
	switch dst.Kind() {
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		if err := bindValue(path, v, p.Elem()); err != nil {
			return err
		}
		dst.Set(p)
		return nil
	case reflect.Struct:
		return bindStruct(path, v, dst)
	case reflect.Slice:
		return bindSlice(path, v, dst)
	case reflect.Map:
		return bindMap(path, v, dst)
	case reflect.Interface:
		dst.Set(reflect.ValueOf(v))
		return nil
	}
	return bindScalar(path, v, dst)
}

func bindScalar(path string, v any, dst reflect.Value) error {
	switch dst.Kind() {
	case reflect.String:
		s, ok := v.(string)
		if !ok {
			return wrongType(path, "a string", v)
		}
		// Paths, arguments and environment variables are C strings: a NUL would end
		// them early.
		if strings.ContainsRune(s, 0) {
			return skerry.Invalid(path, "must not contain a NUL character")
		}
		dst.SetString(s)
	case reflect.Bool:
		b, ok := v.(bool)
		if !ok {
			return wrongType(path, "true or false", v)
		}
		dst.SetBool(b)
	case reflect.Int, reflect.Int64:
		n, err := integer(path, v)
		if err != nil {
			return err
		}
		if dst.OverflowInt(n) {
			return skerry.Invalid(path, "is out of range")
		}
		dst.SetInt(n)
	default:
		return fmt.Errorf("binding %s: no JSON form for %s", path, dst.Type())
	}
	return nil
}

func bindDuration(path string, v any, dst reflect.Value) error {
	ms, err := integer(path, v)
	if err != nil {
		return err
	}
	const most = int64(1<<63-1) / int64(time.Millisecond)
	if ms > most || ms < -most {
		return skerry.Invalid(path, "is out of range")
	}
	dst.SetInt(ms * int64(time.Millisecond))
	return nil
}

func bindSlice(path string, v any, dst reflect.Value) error {
	list, ok := v.([]any)
	if !ok {
		return wrongType(path, "an array", v)
	}
	s := reflect.MakeSlice(dst.Type(), len(list), len(list))
	for i, item := range list {
		if item == nil && dst.Type().Elem().Kind() != reflect.Interface {
			return skerry.Invalid(index(path, i), "must not be null")
		}
		if item == nil {
			continue
		}
		if err := bindValue(index(path, i), item, s.Index(i)); err != nil {
			return err
		}
	}
	dst.Set(s)
	return nil
}

func bindMap(path string, v any, dst reflect.Value) error {
	o, ok := v.(*jsonObject)
	if !ok {
		return wrongType(path, "an object", v)
	}
	m := reflect.MakeMapWithSize(dst.Type(), len(o.names))
	elem := dst.Type().Elem()
	for _, key := range o.names {
		item := o.members[key]
		if strings.ContainsRune(key, 0) {
			return skerry.Invalid(path, "must not have a key with a NUL character")
		}
		value := reflect.New(elem).Elem()
		if item == nil && elem.Kind() != reflect.Interface {
			return skerry.Invalid(member(path, key), "must not be null")
		}
		if item != nil {
			if err := bindValue(member(path, key), item, value); err != nil {
				return err
			}
		}
		m.SetMapIndex(reflect.ValueOf(key), value)
	}
	dst.Set(m)
	return nil
}

// checkTags applies the enum, min and max tags to a bound field.
func checkTags(path string, f reflect.StructField, v reflect.Value) error {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if enum := f.Tag.Get("enum"); enum != "" && v.Kind() == reflect.String {
		if allowed := strings.Split(enum, "|"); !slices.Contains(allowed, v.String()) {
			return skerry.Invalid(path, "must be one of %s, not %q", strings.Join(allowed, ", "), shorten(v.String()))
		}
	}
	if least, ok := intTag(f, "minlen"); ok && v.Kind() == reflect.String && int64(utf8.RuneCountInString(v.String())) < least {
		if least == 1 {
			return skerry.Invalid(path, "must not be empty")
		}
		return skerry.Invalid(path, "must have at least %d characters", least)
	}
	if !v.CanInt() {
		return nil
	}
	n := v.Int()
	if v.Type() == durationType {
		n = v.Interface().(skerry.Duration).Millis()
	}
	if least, ok := intTag(f, "min"); ok && n < least {
		return skerry.Invalid(path, "must be at least %d, not %d", least, n)
	}
	if most, ok := intTag(f, "max"); ok && n > most {
		return skerry.Invalid(path, "must be at most %d, not %d", most, n)
	}
	return nil
}

// bindQuery fills dst, a pointer to a struct, from query parameters. A parameter may
// be repeated only if its field is a slice.
func bindQuery(q url.Values, dst any) error {
	s := reflect.ValueOf(dst).Elem()
	t := s.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		name := fieldName(f)
		given := q[name]
		if len(given) == 0 {
			continue
		}
		for _, text := range given {
			if !validText(text) {
				return skerry.Invalid(name, "must be valid UTF-8 without NUL characters")
			}
		}
		if f.Type.Kind() == reflect.Slice {
			s.Field(i).Set(reflect.ValueOf(given))
			continue
		}
		if len(given) > 1 {
			return skerry.Invalid(name, "must be given once, not %d times", len(given))
		}
		if err := bindParameter(name, given[0], s.Field(i)); err != nil {
			return err
		}
		if err := checkTags(name, f, s.Field(i)); err != nil {
			return err
		}
	}
	return nil
}

func bindParameter(name, text string, dst reflect.Value) error {
	switch dst.Kind() {
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		if err := bindParameter(name, text, p.Elem()); err != nil {
			return err
		}
		dst.Set(p)
	case reflect.Bool:
		if text != "true" && text != "false" {
			return skerry.Invalid(name, "must be true or false, not %q", shorten(text))
		}
		dst.SetBool(text == "true")
	case reflect.Int, reflect.Int64:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return skerry.Invalid(name, "must be an integer, not %q", shorten(text))
		}
		dst.SetInt(n)
	default:
		dst.SetString(text)
	}
	return nil
}

func integer(path string, v any) (int64, error) {
	num, ok := v.(json.Number)
	if !ok {
		return 0, wrongType(path, "an integer", v)
	}
	n, err := strconv.ParseInt(num.String(), 10, 64)
	if err == nil {
		return n, nil
	}
	// In JSON, 7.0 and 7e0 are the integer 7.
	f, ferr := num.Float64()
	if ferr != nil || f != math.Trunc(f) || math.Abs(f) > maxExact {
		return 0, skerry.Invalid(path, "must be an integer, not %s", shorten(num.String()))
	}
	return int64(f), nil
}

// maxExact is the largest integer up to which float64 has every integer.
const maxExact = 1 << 53

func wrongType(path, want string, got any) error {
	return skerry.Invalid(path, "must be %s, not %s", want, kindOf(got))
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case []any:
		return "an array"
	}
	return "an object"
}

func fieldName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

func intTag(f reflect.StructField, key string) (int64, bool) {
	n, err := strconv.ParseInt(f.Tag.Get(key), 10, 64)
	return n, err == nil
}

// shorten limits the text of a request that a message repeats.
func shorten(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
