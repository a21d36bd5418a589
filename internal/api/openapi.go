package api

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/skerry-dev/skerry"
)

// The OpenAPI document is generated from the table of routes, from the types of
// requests and responses, and from the limits in package skerry. TestDocument… and
// FuzzDocument compare it with the server.

// object is a JSON object of the document.
type object = map[string]any

// openAPI serves the document.
func (s *Server) openAPI(c *call) error {
	h := c.w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(s.document)))
	_, err := c.w.Write(s.document)
	return err
}

// describe generates the document.
func describe(routes []route, version string, maxUpload int64, maxOpen int, heartbeat time.Duration, limits skerry.Limits) ([]byte, error) {
	if version == "" {
		version = "0"
	}
	d := &describer{schemas: object{}, bounds: bounds(limits), sizes: sizes(limits)}
	paths := object{}
	for i := range routes {
		rt := &routes[i]
		ops, ok := paths[rt.path].(object)
		if !ok {
			ops = object{}
			paths[rt.path] = ops
		}
		ops[strings.ToLower(rt.method)] = d.operation(rt)
	}
	return json.MarshalIndent(object{
		"openapi": "3.1.0",
		"info": object{
			"title":       "Skerry",
			"version":     version,
			"description": overview(maxUpload, maxOpen, heartbeat),
			"license":     object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers": []any{object{"url": "/"}, object{"url": apiPrefix}},
		"paths":   paths,
		"components": object{
			"schemas":         d.schemas,
			"securitySchemes": object{"token": object{"type": "http", "scheme": "bearer"}},
		},
		"security": []any{object{"token": []any{}}},
	}, "", " ")
}

type describer struct {
	schemas object // components, by name
	bounds  map[string]object
	sizes   []any // of machines
}

func (d *describer) operation(rt *route) object {
	op := object{"operationId": rt.id, "summary": rt.summary, "responses": d.responses(rt)}
	if rt.detail != "" {
		op["description"] = rt.detail
	}
	if params := d.parameters(rt); len(params) > 0 {
		op["parameters"] = params
	}
	if rt.public {
		op["security"] = []any{}
	}
	switch {
	case rt.request != nil:
		op["requestBody"] = object{"required": needsBody(reflect.TypeOf(rt.request)), "content": object{
			"application/json": object{"schema": d.body(reflect.TypeOf(rt.request))},
		}}
	case rt.requestType != "":
		op["requestBody"] = object{"required": true, "content": object{rt.requestType: object{}}}
	}
	return op
}

func (d *describer) parameters(rt *route) (params []any) {
	for _, name := range rt.pathNames() {
		params = append(params, object{
			"name": name, "in": "path", "required": true,
			"schema": d.pathSchema(rt, name),
		})
	}
	var queries []any
	if rt.query != nil {
		queries = append(queries, rt.query)
	}
	if !rt.public {
		queries = append(queries, scopeQuery{})
	}
	for _, q := range queries {
		t := reflect.TypeOf(q)
		for i := range t.NumField() {
			f := t.Field(i)
			params = append(params, object{
				"name": fieldName(f), "in": "query", "required": f.Tag.Get("required") == "true",
				"description": f.Tag.Get("doc"), "schema": d.field(t, f, true),
			})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(rt.headers)) {
		params = append(params, object{
			"name": name, "in": "header", "description": rt.headers[name], "schema": object{"type": "string"},
		})
	}
	return params
}

func (d *describer) responses(rt *route) object {
	all := object{}
	if rt.status == 0 || rt.status < 300 {
		status := rt.status
		if status == 0 {
			status = http.StatusOK
		}
		statuses := []int{status}
		if rt.creates {
			statuses = append(statuses, http.StatusCreated)
		}
		for _, status := range statuses {
			answer := object{"description": http.StatusText(status)}
			if content := d.content(rt); len(content) > 0 {
				answer["content"] = content
			}
			all[strconv.Itoa(status)] = answer
		}
	}
	// Every URL may be too long.
	codes := append([]skerry.Code{skerry.CodeInternal, skerry.CodeBadRequest}, rt.errors...)
	if !rt.public {
		codes = append(codes, skerry.CodeUnauthorized, skerry.CodeForbidden, skerry.CodeNotFound, skerry.CodeRateLimited) // not found: of a project; rate limited: by a quota
	}
	if !rt.anyHost() {
		codes = append(codes, skerry.CodeForbidden)
	}
	if rt.request != nil {
		codes = append(codes, skerry.CodeTooLarge)
	}
	if rt.lines != nil || rt.id == "getCommand" {
		codes = append(codes, codeStreamClosed)
	}
	byStatus := map[int][]string{}
	for _, code := range codes {
		status := statusOf[code]
		if !slices.Contains(byStatus[status], string(code)) {
			byStatus[status] = append(byStatus[status], string(code))
		}
	}
	if rt.path == sandboxPath || rt.path == snapshotsPath+"/{snapshot}" {
		// For words of other paths in the place of a name.
		byStatus[http.StatusMethodNotAllowed] = []string{string(skerry.CodeBadRequest)}
	}
	for status, codes := range byStatus {
		answer := object{
			"description": http.StatusText(status) + ": " + strings.Join(codes, ", "),
			"content": object{"application/json": object{
				"schema": d.schema(reflect.TypeFor[errorResponse](), false),
			}},
		}
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			answer["headers"] = object{"Retry-After": object{
				"description": "After how many seconds to try again.", "schema": object{"type": "integer"},
			}}
		}
		all[strconv.Itoa(status)] = answer
	}
	return all
}

func (d *describer) content(rt *route) object {
	content := object{}
	if rt.response != nil {
		content["application/json"] = object{"schema": d.schema(reflect.TypeOf(rt.response), false)}
	}
	if rt.responseType != "" {
		content[rt.responseType] = object{}
	}
	if rt.lines != nil {
		var kinds []any
		for _, line := range rt.lines {
			kinds = append(kinds, d.schema(reflect.TypeOf(line), false))
		}
		content[ndjsonType] = object{"schema": object{
			"description": "A stream of lines, each one of these as JSON.",
			"anyOf":       kinds,
		}}
	}
	return content
}

// schema describes a type. Structs become components.
func (d *describer) schema(t reflect.Type, request bool) object {
	switch t {
	case reflect.TypeFor[skerry.Time]():
		return object{"type": "integer", "format": "int64", "description": "Milliseconds since the Unix epoch."}
	case durationType:
		// The range of an int64 of nanoseconds.
		return object{"type": "integer", "format": "int64", "description": "Milliseconds.", "minimum": -maxMillis, "maximum": maxMillis}
	case reflect.TypeFor[skerry.Code]():
		return object{"type": "string", "enum": codes()}
	case reflect.TypeFor[skerry.SessionStatus]():
		return object{"type": "string", "enum": statuses, "description": statusDoc}
	case reflect.TypeFor[skerry.MountMode]():
		return object{"type": "string", "enum": []skerry.MountMode{skerry.MountReadWrite, skerry.MountSnapshot}}
	case reflect.TypeFor[skerry.NetworkMode]():
		return object{"type": "string", "enum": []skerry.NetworkMode{skerry.NetworkAllowAll, skerry.NetworkDenyAll, skerry.NetworkCustom}}
	case reflect.TypeFor[*allowRequest]():
		rules := merged(d.schema(reflect.TypeFor[[]skerry.NetworkRule](), true), object{"maxItems": skerry.MaxDomainRules})
		domain := merged(object{"type": "string"}, domainBounds)
		return object{"oneOf": []any{
			object{"type": "array", "maxItems": skerry.MaxPolicyDomains, "uniqueItems": true, "items": domain},
			object{"type": "object", "maxProperties": skerry.MaxPolicyDomains, "propertyNames": domainBounds, "additionalProperties": rules},
		}}
	case reflect.TypeFor[signalNumber]():
		return object{"oneOf": []any{
			object{"type": "integer", "minimum": 1, "maximum": skerry.MaxSignal},
			object{"type": "string", "enum": signalNames()},
		}}
	case reflect.TypeFor[policyRequest]():
		return d.policy("NetworkPolicy", object{})
	case reflect.TypeFor[resourcesRequest]():
		return object{"type": "object", "anyOf": d.sizes}
	case reflect.TypeFor[sourceRequest]():
		return d.source()
	case reflect.TypeFor[json.RawMessage]():
		return object{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.schema(t.Elem(), request)
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer", "format": "int64"}
	case reflect.Slice:
		return object{"type": "array", "items": d.schema(t.Elem(), request)}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem(), request)}
	case reflect.Interface:
		return object{}
	case reflect.Struct:
		return d.component(t, request)
	}
	panic(fmt.Sprintf("openapi: no schema for %s", t))
}

// component describes a struct once, and returns a reference to it.
func (d *describer) component(t reflect.Type, request bool) object {
	name := []rune(t.Name())
	name[0] = unicode.ToUpper(name[0])
	ref := object{"$ref": "#/components/schemas/" + string(name)}
	if _, ok := d.schemas[string(name)]; ok {
		return ref
	}
	s := merged(object{"type": "object"}, oneOf[t])
	d.schemas[string(name)] = s
	properties, required := object{}, []string{}
	d.properties(t, request, properties, &required)
	if len(properties) > 0 {
		s["properties"] = properties
	}
	if len(required) > 0 {
		slices.Sort(required)
		s["required"] = required
	}
	return ref
}

func (d *describer) properties(t reflect.Type, request bool, into object, required *[]string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Tag.Get("json") == "" {
			d.properties(f.Type, request, into, required)
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "-" || name == "" {
			continue
		}
		into[name] = d.field(t, f, request)
		// A response always has fields without omitempty. A request must have those with
		// the tag "required".
		if request && f.Tag.Get("required") == "true" || !request && options == "" {
			*required = append(*required, name)
		}
	}
}

// field describes a field of the struct t by its type, its tags and its limits.
func (d *describer) field(t reflect.Type, f reflect.StructField, request bool) object {
	s := d.schema(f.Type, request)
	nullable := f.Type.Kind() == reflect.Pointer && !request && !strings.Contains(f.Tag.Get("json"), ",")
	if nullable {
		s = object{"type": []any{s["type"], "null"}}
	}
	if least, ok := intTag(f, "minlen"); ok && request {
		s["minLength"] = least
	}
	if doc := fieldDoc(t, f); doc != "" {
		s["description"] = doc
	}
	if enum := f.Tag.Get("enum"); enum != "" {
		s["enum"] = strings.Split(enum, "|")
	}
	if least, ok := intTag(f, "min"); ok {
		s["minimum"] = least
	}
	if most, ok := intTag(f, "max"); ok {
		s["maximum"] = most
	}
	// The limits of the installation are narrower than the tags.
	maps.Copy(s, d.bounds[lowerFirst(t.Name())+"."+fieldName(f)])
	return s
}
