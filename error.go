package skerry

import (
	"errors"
	"fmt"
	"time"
)

// Code is the kind of an error. Clients branch on it; internal/api maps each code
// to one HTTP status.
type Code string

// The codes of errors.
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
	// CodeSnapshotIncompatible: a snapshot of another driver, or a memory snapshot of
	// another version.
	CodeSnapshotIncompatible Code = "snapshot_incompatible"
	CodeTimeoutInvalid       Code = "sandbox_timeout_invalid"
	CodeDiskFull             Code = "disk_full"
	// CodeSandboxUnsavable: the sandbox cannot be saved because of its own state.
	// A retry fails too.
	CodeSandboxUnsavable Code = "sandbox_unsavable"
	CodeImageInvalid     Code = "image_invalid"
	// CodeExecutableNotFound: there is no such program in the sandbox.
	CodeExecutableNotFound Code = "executable_not_found"
	CodeSourceFailed       Code = "source_failed"
	// CodeStdinUnavailable: the command has no standard input, or the command has
	// ended. CodeStdinTimeout: the command does not read its standard input.
	CodeStdinUnavailable Code = "command_stdin_unavailable"
	CodeStdinTimeout     Code = "command_stdin_timeout"
)

// Error is an error that is shown to clients. Its message says what is wrong and
// contains no secrets. All other errors are shown as "internal error", and only the
// log has their text.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"`
	// Field is the path of the field at fault, such as "resources.vcpus". It is
	// empty if the error is not about a single field.
	Field string `json:"field,omitempty"`
	// Resource is the kind of the resource that does not exist, or whose state
	// forbids the call. It is empty if the error is not about one.
	Resource Resource `json:"resource,omitempty"`
	// BytesWritten is set with CodeStdinTimeout: the total number of input bytes
	// that the command has read.
	BytesWritten *int64 `json:"bytesWritten,omitempty"`
	// RetryAfter is when another try may succeed, 0 if that is not known. It is sent as a header.
	RetryAfter time.Duration `json:"-"`
	// Err is the cause. It is logged, and never sent.
	Err error `json:"-"`
}

// Resource is a kind of resource that an Error is about.
type Resource string

// The resources.
const (
	ResourceSandbox  Resource = "sandbox"
	ResourceSession  Resource = "session"
	ResourceCommand  Resource = "command"
	ResourceSnapshot Resource = "snapshot"
	ResourceDrive    Resource = "drive"
	ResourceTeam     Resource = "team"
	ResourceProject  Resource = "project"
	ResourceUser     Resource = "user"
	ResourceToken    Resource = "token"
)

// About sets the resource that the error is about, and returns the error.
func (e *Error) About(r Resource) *Error {
	e.Resource = r
	return e
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

// Errorf returns an Error with a code and a formatted message. The operand of %w
// becomes the cause.
func Errorf(code Code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// Invalid returns a bad_request Error about a field of a request.
func Invalid(field, format string, args ...any) *Error {
	return &Error{Code: CodeBadRequest, Field: field, Message: fmt.Sprintf(format, args...)}
}

// NotImplemented returns the Error for a field or a call that this version does not
// support.
func NotImplemented(field, what string) *Error {
	return &Error{Code: CodeNotImplemented, Field: field, Message: what + " is not supported by this version of Skerry"}
}

// CodeOf returns the code of the first Error in err's chain, or CodeInternal if there
// is none. CodeOf(nil) is "".
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
