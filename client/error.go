package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/skerry-dev/skerry"
)

// maxErrorBody limits what is read of an error response.
const maxErrorBody = 64 << 10

// Error is an error returned by the server.
type Error struct {
	// Status is the HTTP status; 0 for an error in a stream that had already begun.
	Status int
	// Code is the kind of the error.
	Code skerry.Code
	// Message is a human-readable description, without the name of the field.
	Message string
	// Field is the path of the request's field that caused the error, if there is
	// one.
	Field string
	// Resource is the kind of the resource that does not exist, or whose state forbids
	// the call. It is empty if the error is not about one, and from servers that do not
	// send it.
	Resource skerry.Resource
	// RequestID identifies the request in the server's log.
	RequestID string
}

func (e *Error) Error() string {
	msg := e.Message
	if e.Field != "" {
		msg = e.Field + ": " + msg
	}
	if e.Status == 0 {
		return fmt.Sprintf("%s (%s)", msg, e.Code)
	}
	return fmt.Sprintf("%s (%d %s)", msg, e.Status, e.Code)
}

// Is reports whether target is an *Error or a *skerry.Error with the same
// code, so that errors.Is(err, &client.Error{Code: skerry.CodeNotFound})
// holds.
func (e *Error) Is(target error) bool {
	switch t := target.(type) {
	case *Error:
		return t.Code == e.Code && (t.Status == 0 || t.Status == e.Status)
	case *skerry.Error:
		return t.Code == e.Code
	}
	return false
}

// CodeOf returns the code of the [Error] in err's chain, or "" if there is none.
func CodeOf(err error) skerry.Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// IsNotFound reports whether err says that something does not exist.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsConflict reports whether err says that a name is taken.
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsUnauthorized reports whether err says that the token is missing, wrong, or does
// not allow the call.
func IsUnauthorized(err error) bool {
	return hasStatus(err, http.StatusUnauthorized) || hasStatus(err, http.StatusForbidden)
}

// IsNotImplemented reports whether err says that the server does not have the
// feature.
func IsNotImplemented(err error) bool { return hasStatus(err, http.StatusNotImplemented) }

// IsSnapshotNotFound reports whether err says that the snapshot from which a
// sandbox would start was deleted, has expired or never existed. To use the sandbox
// again, set another current snapshot, or delete the sandbox and create it again.
func IsSnapshotNotFound(err error) bool { return CodeOf(err) == skerry.CodeSnapshotNotFound }

// IsExecutableNotFound reports whether err says that there is no such program in the
// sandbox.
func IsExecutableNotFound(err error) bool { return CodeOf(err) == skerry.CodeExecutableNotFound }

// IsStopped reports whether err says that the session has ended or is ending.
func IsStopped(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Code {
	case skerry.CodeSandboxStopped, skerry.CodeSandboxStopping, skerry.CodeSandboxSnapshotting:
		return true
	}
	return e.Status == http.StatusGone && e.Code != skerry.CodeSnapshotNotFound
}

func hasStatus(err error, status int) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == status
}

// readError returns the Error of an error response. It reads the body, which the caller
// closes.
func readError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id")}
	var body errorBody
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if json.Unmarshal(b, &body) == nil {
		e.Code, e.Message, e.Field, e.Resource = body.Error.Code, body.Error.Message, body.Error.Field, body.Error.Resource
	}
	return e.complete(resp)
}

type errorBody struct {
	Error struct {
		Code     skerry.Code     `json:"code"`
		Message  string          `json:"message"`
		Field    string          `json:"field"`
		Resource skerry.Resource `json:"resource"`
		Status   int             `json:"status"`
	} `json:"error"`
}

// lateError returns the error in the body of a response whose status was sent before the
// error happened. Such a response begins with white space.
func lateError(resp *http.Response, b []byte) error {
	var body errorBody
	if len(b) == 0 || b[0] != '\n' || json.Unmarshal(b, &body) != nil || body.Error.Status == 0 {
		return nil
	}
	e := &Error{
		Status: body.Error.Status, Code: body.Error.Code, Message: body.Error.Message, Field: body.Error.Field, Resource: body.Error.Resource,
		RequestID: resp.Header.Get("X-Request-Id"),
	}
	return e.complete(resp)
}

// complete sets fields that the server did not send.
func (e *Error) complete(resp *http.Response) *Error {
	// The message of the server begins with the field, for clients that show only the
	// message.
	if e.Field != "" {
		e.Message = strings.TrimPrefix(e.Message, e.Field+": ")
	}
	if e.Code == "" {
		e.Code = codeOfStatus(e.Status)
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("the server answered %q", resp.Status)
	}
	return e
}

// codeOfStatus returns a code for a response without one, which is usually from a proxy.
func codeOfStatus(status int) skerry.Code {
	switch status {
	case http.StatusUnauthorized:
		return skerry.CodeUnauthorized
	case http.StatusForbidden:
		return skerry.CodeForbidden
	case http.StatusNotFound:
		return skerry.CodeNotFound
	case http.StatusConflict:
		return skerry.CodeConflict
	case http.StatusGone:
		return skerry.CodeSandboxStopped
	case http.StatusRequestEntityTooLarge:
		return skerry.CodeTooLarge
	case http.StatusTooManyRequests:
		return skerry.CodeRateLimited
	case http.StatusNotImplemented:
		return skerry.CodeNotImplemented
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return skerry.CodeUnavailable
	}
	if status >= 500 {
		return skerry.CodeInternal
	}
	return skerry.CodeBadRequest
}
