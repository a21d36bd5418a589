package skerry

import (
	"errors"
	"fmt"
)

// Code names a kind of failure. Clients branch on it; internal/api maps each
// to one HTTP status.
type Code string

// The codes a client can meet.
const (
	CodeBadRequest          Code = "bad_request"
	CodeUnauthorized        Code = "unauthorized"
	CodeForbidden           Code = "forbidden"
	CodeNotFound            Code = "not_found"
	CodeConflict            Code = "conflict"
	CodeTooLarge            Code = "payload_too_large"
	CodeRateLimited         Code = "rate_limited"
	CodeNotImplemented      Code = "not_implemented"
	CodeInternal            Code = "internal_error"
	CodeUnavailable         Code = "unavailable"
	CodeSandboxStopped      Code = "sandbox_stopped"
	CodeSandboxStopping     Code = "sandbox_stopping"
	CodeSandboxSnapshotting Code = "sandbox_snapshotting"
	CodeSnapshotNotFound    Code = "snapshot_not_found"
	// CodeSnapshotIncompatible: a memory snapshot of another version.
	CodeSnapshotIncompatible Code = "snapshot_incompatible"
	CodeTimeoutInvalid       Code = "sandbox_timeout_invalid"
	CodeDiskFull             Code = "disk_full"
	CodeImageInvalid         Code = "image_invalid"
	CodeSourceFailed         Code = "source_failed"
	// CodeStdinUnavailable: the command has no standard input, or it has
	// ended. CodeStdinTimeout: it does not read what it has been given.
	CodeStdinUnavailable Code = "command_stdin_unavailable"
	CodeStdinTimeout     Code = "command_stdin_timeout"
)

// Error is a failure that a client may see: its message names what was wrong
// and holds no secret. An error of any other type is shown to clients as
// "internal error" and goes whole to the log only.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Field is the path of the request field at fault ("resources.vcpus"),
	// empty when no single field is.
	Field string `json:"field,omitempty"`
	// BytesWritten comes with CodeStdinTimeout: how much of a command's input
	// was taken in all.
	BytesWritten *int64 `json:"bytesWritten,omitempty"`
	// Err is the cause, for the log; it is never sent.
	Err error `json:"-"`
}

func (e *Error) Error() string {
	msg := e.Message
	if e.Field != "" {
		msg = e.Field + ": " + msg
	}
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, msg, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Code, msg)
}

func (e *Error) Unwrap() error { return e.Err }

// Errorf returns an Error with the given code and formatted message. A %w verb
// keeps its operand as the cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Invalid returns a bad_request Error about one field of a request.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Code: CodeBadRequest, Field: field, Message: fmt.Sprintf(format, args...)}
}

// NotImplemented returns the Error for a field or call of the API whose
// feature is not in this version.
func NotImplemented(field, what string) *Error {
	return &Error{Code: CodeNotImplemented, Field: field, Message: what + " is not supported by this version of Skerry"}
}

// CodeOf returns the code of the Error in err's chain, or CodeInternal when
// there is none. CodeOf(nil) is "".
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}
