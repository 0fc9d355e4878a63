-- A script for wrk: sends a caller's key and a body of BODY-BYTES (0: a GET), optionally closes the
-- connection after each request, and prints the result as one line of JSON.
--
--     wrk … -s wrk.lua URL -- KEY BODY-BYTES keep|close

function init(arguments)
    wrk.headers["X-Countersign-Key"] = arguments[1]
    local bytes = tonumber(arguments[2])
    if bytes > 0 then
        wrk.method = "POST"
        wrk.headers["Content-Type"] = "application/json"
        wrk.body = string.rep("x", bytes)
    end
    if arguments[3] == "close" then
        wrk.headers["Connection"] = "close"
    end
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        'result: {"requests":%d,"p50":%.1f,"p99":%.1f,"p999":%.1f,' ..
        '"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\n',
        summary.requests, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
        errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
