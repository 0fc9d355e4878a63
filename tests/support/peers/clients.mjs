// The same calls with Node's HTTP clients.
//
// Run by a test as `node clients.mjs CLIENT '{"base": …, "key": …, "ca": …}'`; prints what the
// client made of the answers as one JSON object, the same for every client.

import { readFileSync } from 'node:fs'
import { Agent as HttpsAgent } from 'node:https'
import { Readable } from 'node:stream'
import axios from 'axios'
import { Agent, buildConnector, fetch } from 'undici'

const [client, settings] = process.argv.slice(2)
const { base, key, ca, redirect } = JSON.parse(settings)
const authority = readFileSync(ca)

function * parts () {
  for (const letter of ['a', 'b', 'c']) yield Buffer.from(letter.repeat(1000))
}

let version = '1.1'
// Each of these takes a request and gives its answer's status, text and length.
const send = {
  undici: () => withFetch(false),
  'undici-h2': () => withFetch(true),
  axios: withAxios
}[client]()

function withFetch (allowH2) {
  const connect = buildConnector({ ca: authority, allowH2 })
  const noted = (options, done) => connect(options, (error, socket) => {
    version = socket?.alpnProtocol === 'h2' ? '2' : '1.1'
    done(error, socket)
  })
  const dispatcher = new Agent({ allowH2, connections: 10, connect: noted })
  return async (method, url, body, follow = 'manual') => {
    const headers = { 'x-api-key': key }
    if (body?.json) headers['content-type'] = 'application/json'
    const answer = await fetch(url, {
      method,
      headers,
      body: body?.json ? JSON.stringify(body.json) : body?.stream ? Readable.from(parts()) : body,
      duplex: 'half',
      redirect: follow,
      dispatcher
    })
    return { status: answer.status, text: await answer.text(), length: answer.headers.get('content-length') }
  }
}

function withAxios () {
  const session = axios.create({
    httpsAgent: new HttpsAgent({ ca: authority, keepAlive: true, maxSockets: 10 }),
    // The header in which Venafi's own clients send theirs.
    headers: { 'X-Venafi-Api-Key': key },
    validateStatus: () => true,
    transformResponse: text => text,
    responseType: 'text',
    proxy: false
  })
  return async (method, url, body, follow = 'manual') => {
    const data = body?.json ?? (body?.stream ? Readable.from(parts()) : body)
    const answer = await session.request({
      method, url, data, maxRedirects: body?.stream || follow === 'manual' ? 0 : 5
    })
    return { status: answer.status, text: answer.data, length: answer.headers['content-length'] }
  }
}

const seen = ({ status, text }) => [status, text]
const query = 'a=1&b=' + encodeURIComponent('ä')
const head = await send('HEAD', `${base}/v/head?size=12`)
const refused = await send('POST', `${base}/nobody/x`, Buffer.alloc(100_000, 'x'))
const many = await Promise.all(
  Array.from({ length: 60 }, (_, n) => send('GET', `${base}/v/many?body=${n}`))
)
console.log(JSON.stringify({
  version,
  get: seen(await send('GET', `${base}/v/x?${query}`)),
  post: seen(await send('POST', `${base}/v/post`, { json: { n: 1 } })),
  stream: seen(await send('POST', `${base}/v/stream`, { stream: true })),
  put: seen(await send('PUT', `${base}/v/put`, Buffer.alloc(300_000, 'x'))),
  delete: seen(await send('DELETE', `${base}/v/delete`)),
  gone: seen(await send('GET', `${base}/v/gone?status=404&body=away`)),
  empty: seen(await send('GET', `${base}/v/empty?status=204`)),
  gzip: seen(await send('GET', `${base}/v/gzip?body=packed&code=gzip`)),
  big: [(await send('GET', `${base}/v/big?size=3000000`)).text.length],
  redirect: seen(await send('GET', redirect, undefined, 'follow')),
  after_head: [head.status, head.length, head.text.length],
  refused: [refused.status, JSON.parse(refused.text).reason],
  many: many.every(({ text }, n) => text === String(n))
}))
process.exit(0)
