package export

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
)

// Config is where traces or logs are sent, and which traces.
type Config struct {
	// Endpoint is the URL that they are posted to; "" for nowhere.
	Endpoint string
	// Headers are sent with every request. They may have credentials.
	Headers map[string]string
	// TLS is nil for the machine's own authorities.
	TLS *tls.Config
	// Gzip compresses requests.
	Gzip bool
	// Timeout bounds a request.
	Timeout time.Duration
	// Ratio is how many of the traces are sent, from 0 to 1.
	Ratio float64
}

// The variables that OpenTelemetry defines for every program that exports traces or logs.
// Of those with the prefix OTEL_EXPORTER_OTLP_ there is one for traces and one for logs
// too, which comes first. The SDK itself reads OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES and OTEL_BSP_….
const (
	envDisabled   = "OTEL_SDK_DISABLED"
	envExporter   = "OTEL_TRACES_EXPORTER"
	envSampler    = "OTEL_TRACES_SAMPLER"
	envSamplerArg = "OTEL_TRACES_SAMPLER_ARG"
	envPrefix     = "OTEL_EXPORTER_OTLP_"
	envTraces     = envPrefix + "TRACES_"
	envLogs       = envPrefix + "LOGS_"
)

// HeadersEnv are the variables that may contain credentials.
var HeadersEnv = []string{envPrefix + "HEADERS", envTraces + "HEADERS", envLogs + "HEADERS"}

// Paths that are appended to an endpoint for all kinds of data.
const (
	tracesPath = "/v1/traces"
	logsPath   = "/v1/logs"
)

const defaultTimeout = 10 * time.Second

// variables are those of the exporter of one kind of data.
type variables struct {
	getenv func(string) string
	prefix string // of those that come first
}

// option returns the value of an exporter variable, and its name.
func (v variables) option(name string) (value, from string) {
	if value := v.getenv(v.prefix + name); value != "" {
		return value, v.prefix + name
	}
	return v.getenv(envPrefix + name), envPrefix + name
}

// Configure reads the environment. endpoint, if not "", is the value of --otlp-endpoint
// and takes precedence over the variables for it. An error names the flag or the variable,
// and has no value of a header.
func Configure(endpoint string, getenv func(string) string) (Config, error) {
	var c Config
	if endpoint == "" {
		var from string
		if endpoint, from = (variables{getenv, envTraces}).option("ENDPOINT"); endpoint == "" || isTrue(getenv(envDisabled)) || getenv(envExporter) == "none" {
			return Config{}, nil
		}
		u, err := parseEndpoint(endpoint, tracesPath, from == envPrefix+"ENDPOINT")
		if err != nil {
			return Config{}, fmt.Errorf("%s: %w", from, err)
		}
		c.Endpoint = u
	} else {
		u, err := parseEndpoint(endpoint, tracesPath, true)
		if err != nil {
			return Config{}, fmt.Errorf("--otlp-endpoint: %w", err)
		}
		c.Endpoint = u
	}
	if err := c.read(variables{getenv, envTraces}); err != nil {
		return Config{}, err
	}
	if err := c.readSampler(getenv); err != nil {
		return Config{}, err
	}
	return c, nil
}

// ConfigureLogs returns how logs are sent to an endpoint, which flag names; "" for nowhere.
// The environment does not name an endpoint, but says how to send. An error names the flag
// or the variable, and has no value of a header.
func ConfigureLogs(flag, endpoint string, getenv func(string) string) (Config, error) {
	if endpoint == "" {
		return Config{}, nil
	}
	u, err := parseEndpoint(endpoint, logsPath, true)
	if err != nil {
		return Config{}, fmt.Errorf("--%s: %w", flag, err)
	}
	c := Config{Endpoint: u}
	if err := c.read(variables{getenv, envLogs}); err != nil {
		return Config{}, err
	}
	return c, nil
}

// read reads what the variables say about all kinds of data.
func (c *Config) read(v variables) error {
	for _, read := range []func(variables) error{c.readProtocol, c.readTimeout, c.readHeaders, c.readTLS} {
		if err := read(v); err != nil {
			return err
		}
	}
	return nil
}

func isTrue(s string) bool { return strings.EqualFold(s, "true") }

// parseEndpoint returns the URL to post to. The path is added to an endpoint for all kinds
// of data.
func parseEndpoint(endpoint, path string, all bool) (string, error) {
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.RawQuery != "" || u.Fragment != "" {
		return "", errors.New("not a URL such as http://127.0.0.1:4318")
	}
	if u.User != nil {
		return "", fmt.Errorf("a URL with a password; put credentials into %sHEADERS", envPrefix)
	}
	if all {
		u = u.JoinPath(path)
	}
	return u.String(), nil
}

func (c *Config) readProtocol(vars variables) error {
	if p, from := vars.option("PROTOCOL"); p != "" && p != "http/protobuf" {
		return fmt.Errorf("%s is %q; the server speaks http/protobuf", from, p)
	}
	switch v, from := vars.option("COMPRESSION"); v {
	case "gzip":
		c.Gzip = true
	case "", "none":
	default:
		return fmt.Errorf("%s is %q, must be gzip or none", from, v)
	}
	return nil
}

func (c *Config) readTimeout(vars variables) error {
	c.Timeout = defaultTimeout
	v, from := vars.option("TIMEOUT")
	if v == "" {
		return nil
	}
	ms, err := strconv.Atoi(v)
	if err != nil || ms < 1 || ms > 60_000 {
		return fmt.Errorf("%s is %q, must be 1 to 60000 milliseconds", from, v)
	}
	c.Timeout = time.Duration(ms) * time.Millisecond
	return nil
}

// readHeaders reads "name=value,name=value", with values in URL encoding.
func (c *Config) readHeaders(vars variables) error {
	list, from := vars.option("HEADERS")
	for n, field := range strings.Split(list, ",") {
		if strings.TrimSpace(field) == "" {
			continue
		}
		name, raw, ok := strings.Cut(field, "=")
		name = strings.TrimSpace(name)
		value, err := url.PathUnescape(strings.TrimSpace(raw))
		if !ok || err != nil || !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			return fmt.Errorf("%s: header %d is not of the form name=value", from, n+1)
		}
		if c.Headers == nil {
			c.Headers = map[string]string{}
		}
		c.Headers[name] = value
	}
	return nil
}

// readTLS reads the authority of the collector and the certificate for it.
func (c *Config) readTLS(vars variables) error {
	authority, fromAuthority := vars.option("CERTIFICATE")
	cert, fromCert := vars.option("CLIENT_CERTIFICATE")
	key, fromKey := vars.option("CLIENT_KEY")
	if authority == "" && cert == "" && key == "" {
		return nil
	}
	c.TLS = &tls.Config{}
	if authority != "" {
		pem, err := os.ReadFile(authority)
		if err != nil {
			return fmt.Errorf("%s: %w", fromAuthority, err)
		}
		c.TLS.RootCAs = x509.NewCertPool()
		if !c.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: %s has no certificate", fromAuthority, authority)
		}
	}
	if (cert == "") != (key == "") {
		return fmt.Errorf("%s and %s need each other", fromCert, fromKey)
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("%s: %w", fromCert, err)
		}
		c.TLS.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// readSampler reads which traces are sent. All samplers decide at the root of a trace,
// as the server's traces begin in the server.
func (c *Config) readSampler(getenv func(string) string) error {
	switch v := strings.TrimPrefix(getenv(envSampler), "parentbased_"); v {
	case "", "always_on":
		c.Ratio = 1
	case "always_off":
		c.Ratio = 0
	case "traceidratio":
		c.Ratio = 1
		arg := getenv(envSamplerArg)
		if arg == "" {
			return nil
		}
		ratio, err := strconv.ParseFloat(arg, 64)
		if err != nil || !(ratio >= 0 && ratio <= 1) {
			return fmt.Errorf("%s is %q, must be 0 to 1", envSamplerArg, arg)
		}
		c.Ratio = ratio
	default:
		return fmt.Errorf("%s is %q, must be always_on, always_off or traceidratio", envSampler, getenv(envSampler))
	}
	return nil
}
