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

// maxErrorBody bounds what is read of a response that is an error.
const maxErrorBody = 64 << 10

// Error is a refusal by the server.
type Error struct {
	// Status is the HTTP status; 0 for an error in a stream that had begun.
	Status int
	// Code names the kind of failure.
	Code skerry.Code
	// Message says for people what is wrong, without naming the field.
	Message string
	// Field is the path of the request's field at fault, if one is.
	Field string
	// RequestID finds the request in the server's log.
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

// CodeOf returns the code of the [Error] in err's chain, "" when there is none.
func CodeOf(err error) skerry.Code {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Code
	}
	return ""
}

// IsNotFound reports whether err says that the thing asked for does not exist.
func IsNotFound(err error) bool { return hasStatus(err, http.StatusNotFound) }

// IsConflict reports whether err says that a name is taken.
func IsConflict(err error) bool { return hasStatus(err, http.StatusConflict) }

// IsUnauthorized reports whether err says that the token is missing, wrong or
// without rights to what was asked for.
func IsUnauthorized(err error) bool {
	return hasStatus(err, http.StatusUnauthorized) || hasStatus(err, http.StatusForbidden)
}

// IsNotImplemented reports whether err says that this server has no such
// feature.
func IsNotImplemented(err error) bool { return hasStatus(err, http.StatusNotImplemented) }

// IsSnapshotNotFound reports whether err says that a snapshot that a sandbox
// would start from is deleted, has expired or never was. A sandbox whose
// current snapshot is gone can be given another one, or be deleted and created
// anew.
func IsSnapshotNotFound(err error) bool { return CodeOf(err) == skerry.CodeSnapshotNotFound }

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

// readError makes an Error of a response that is not a success. It reads the
// body and leaves closing it to the caller.
func readError(resp *http.Response) error {
	e := &Error{Status: resp.StatusCode, RequestID: resp.Header.Get("X-Request-Id")}
	var body struct {
		Error struct {
			Code    skerry.Code `json:"code"`
			Message string      `json:"message"`
			Field   string      `json:"field"`
		} `json:"error"`
	}
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	if json.Unmarshal(b, &body) == nil {
		e.Code, e.Message, e.Field = body.Error.Code, body.Error.Message, body.Error.Field
	}
	// A server puts the field before the message too, for clients that show
	// nothing else.
	if e.Field != "" {
		e.Message = strings.TrimPrefix(e.Message, e.Field+": ")
	}
	if e.Code == "" {
		e.Code = codeOfStatus(resp.StatusCode)
	}
	if e.Message == "" {
		e.Message = fmt.Sprintf("the server answered %q", resp.Status)
	}
	return e
}

// codeOfStatus stands in for a code when something before the server, a proxy
// perhaps, has answered.
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
