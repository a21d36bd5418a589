package api

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/skerry-dev/skerry"
)

func quietServer(t testing.TB, svc Service) *Server {
	srv, err := New(Options{Service: svc, Accounts: oneAccount{}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(srv.drain)
	return srv
}

// answerTo calls a server without a socket.
func answerTo(srv *Server, method, path string, body []byte) (int, string) {
	req := httptest.NewRequest(method, path, strings.NewReader(string(body)))
	req.Header.Set("Authorization", "Bearer "+testToken)
	w := httptest.NewRecorder()
	srv.ServeHTTP(w, req)
	return w.Code, w.Body.String()
}

func TestDocumentIsValidAndComplete(t *testing.T) {
	h := serve(t, &stub{})
	a := h.call("GET", "/openapi.json", "")
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" {
		t.Fatalf("%d %v", a.status, a.header)
	}
	doc, err := openapi3.NewLoader().LoadFromData(a.body)
	if err != nil {
		t.Fatal(err)
	}
	if err := doc.Validate(t.Context(), openapi3.IsOpenAPI31OrLater()); err != nil {
		t.Fatal(err)
	}
	described := map[string]bool{}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			described[method+" "+path] = true
			if op.Summary == "" || op.OperationID == "" {
				t.Errorf("%s %s has no summary or id", method, path)
			}
		}
	}
	ids := map[string]bool{}
	for _, rt := range h.srv.routes() {
		if !described[rt.method+" "+rt.path] {
			t.Errorf("%s %s is not described", rt.method, rt.path)
		}
		delete(described, rt.method+" "+rt.path)
		if ids[rt.id] {
			t.Errorf("two routes are called %s", rt.id)
		}
		ids[rt.id] = true
		// What is described is what is registered, under both prefixes.
		for _, prefix := range []string{"", apiPrefix} {
			path := prefix + pathName.ReplaceAllString(rt.path, "x")
			_, pattern := h.srv.mux.Handler(httptest.NewRequest(rt.method, path, nil))
			if pattern != rt.method+" "+prefix+rt.muxPath() {
				t.Errorf("%s %s is served by %q", rt.method, path, pattern)
			}
		}
	}
	for route := range described {
		t.Errorf("%s is described and not served", route)
	}
}

// The document names every code and says of every field what it is.
func TestDocumentLeavesNothingOut(t *testing.T) {
	srv := quietServer(t, &stub{})
	doc, err := openapi3.NewLoader().LoadFromData(srv.document)
	if err != nil {
		t.Fatal(err)
	}
	code := doc.Components.Schemas["ErrorBody"].Value.Properties["code"].Value
	for c, status := range statusOf {
		if !slices.Contains(code.Enum, any(string(c))) || !strings.Contains(code.Description, fmt.Sprintf("%s (%d)", c, status)) {
			t.Errorf("the code %s (%d) is not named", c, status)
		}
	}
	used := map[string]bool{}
	for name, schema := range doc.Components.Schemas {
		for field, property := range schema.Value.Properties {
			isList := property.Value != nil && property.Value.Type.Is("array") && property.Value.Items.Ref != ""
			if property.Ref == "" && !isList && property.Value.Description == "" {
				t.Errorf("%s.%s is not described", name, field)
			}
		}
	}
	for _, path := range doc.Paths.Map() {
		for _, op := range path.Operations() {
			for _, p := range op.Parameters {
				if p.Value.In != "path" && p.Value.Description == "" {
					t.Errorf("%s: the parameter %s is not described", op.OperationID, p.Value.Name)
				}
			}
		}
	}
	// What is described is there: see fieldDocs.
	var visit func(reflect.Type)
	visit = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := typ.Name() + "." + fieldName(f)
			if used[key] {
				continue
			}
			used[key] = true
			visit(f.Type)
		}
	}
	visit(reflect.TypeFor[errorResponse]())
	for _, rt := range srv.routes() {
		for _, v := range append([]any{rt.request, rt.response}, rt.lines...) {
			if v != nil {
				visit(reflect.TypeOf(v))
			}
		}
	}
	for key := range fieldDocs {
		if !used[key] {
			t.Errorf("%s is described and not there", key)
		}
	}
	for _, limit := range []int{maxBody, maxDepth, maxHeaderBytes, DefaultMaxUpload, bombRatio, DefaultMaxOpen, skerry.MaxPageSize} {
		if !strings.Contains(doc.Info.Description, strconv.Itoa(limit)) {
			t.Errorf("the limit %d is not named", limit)
		}
	}
}

func TestDocumentSaysWhatIsChecked(t *testing.T) {
	h := serve(t, &stub{})
	doc, err := openapi3.NewLoader().LoadFromData(h.srv.document)
	if err != nil {
		t.Fatal(err)
	}
	create := doc.Components.Schemas["CreateRequest"].Value
	if got := create.Properties["runtime"].Value.Enum; !slices.Contains(got, any("node24")) {
		t.Errorf("runtimes: %v", got)
	}
	if got := doc.Components.Schemas["RunRequest"].Value.Required; len(got) != 1 || got[0] != "command" {
		t.Errorf("required of a command: %v", got)
	}
	list := doc.Paths.Value("/v2/sandboxes").GetOperation(http.MethodGet)
	limit := list.Parameters.GetByInAndName("query", "limit")
	if limit == nil || *limit.Schema.Value.Min != 1 || *limit.Schema.Value.Max != 100 {
		t.Errorf("limit: %+v", limit)
	}
	// The installation's bounds are the document's, whatever a tag says.
	drive := doc.Components.Schemas["DriveRequest"].Value.Properties["maxSizeBytes"].Value
	if drive.Min == nil || *drive.Min != skerry.MinDriveSize {
		t.Errorf("the least size of a drive: %v", drive.Min)
	}
	// The document tells nothing that an answer would not hold.
	if _, ok := doc.Components.Schemas["Sandbox"].Value.Properties["env"]; ok {
		t.Error("the document says that answers hold the environment")
	}
	command := doc.Components.Schemas["Command"].Value.Properties["exitCode"].Value
	if !command.Type.Includes("null") || !command.Type.Includes("integer") {
		t.Errorf("exitCode: %v", command.Type)
	}
}
