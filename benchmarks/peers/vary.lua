-- Sends the lines of a file one after the other as bodies; with a pause, requests are spread over time.
local requests, sent, pause = {}, 0, 0

function init(arguments)
  for line in io.lines(arguments[1]) do
    requests[#requests + 1] = wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, line)
  end
  pause = tonumber(arguments[2] or "0")
  math.randomseed(7)
end

function request()
  sent = sent % #requests + 1
  return requests[sent]
end

function delay()
  return pause > 0 and math.random(0, 2 * pause) or 0
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.status + errors.connect + errors.read + errors.write + errors.timeout
  io.write(string.format('\nfigures {"requests": %d, "microseconds": %d, "failed": %d, "p50": %d, "p99": %d}\n',
    summary.requests, summary.duration, failed, latency:percentile(50), latency:percentile(99)))
end
