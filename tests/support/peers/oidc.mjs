// A third-party token server (oidc-provider) in front of a small API that accepts only
// its tokens. Started by a test as `node oidc.mjs '{"cert": …}'`; settings below.
//
// stdout: one JSON line per event. The first is {"event":"listening","port":N}; then one "token"
// line per call of the token endpoint, and "revoked" when a reused refresh token has cost its
// whole family. Ends when its standard input does, so a test that dies leaves no server behind.

import { createHash, X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';

import { Provider } from 'oidc-provider';

const settings = JSON.parse(process.argv[2]);
const {
  cert, key, // files: this server's certificate and key
  clientCa, // file: what tls_client_auth trusts
  selfSigned, // file: the one certificate of self_signed_tls_client_auth
  publicKey, // JWK: what private_key_jwt verifies with
  secret, // of the clients "by basic" and "post"
  redirectUris, // of the clients of the code flow
  accessTokenSeconds,
} = settings;

process.stdin.resume().on('end', () => process.exit(0));

const tell = (event, fields) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);

const server = createServer({
  cert: readFileSync(cert),
  key: readFileSync(key),
  ca: readFileSync(clientCa),
  // Requested of every client, required of none: each client's own method decides.
  requestCert: true,
  rejectUnauthorized: false,
});

server.listen(0, '127.0.0.1', () => {
  const { port } = server.address();
  server.on('request', handler(`https://localhost:${port}`));
  tell('listening', { port });
});

// --- who may ask for tokens --------------------------------------------------------------------

const machine = { grant_types: ['client_credentials'], redirect_uris: [], response_types: [] };
const person = { grant_types: ['authorization_code', 'refresh_token'], redirect_uris: redirectUris };

const clients = [
  // A name that needs form-encoding too (RFC 6749 §2.3.1).
  { client_id: 'by basic', client_secret: secret, token_endpoint_auth_method: 'client_secret_basic', ...machine },
  { client_id: 'post', client_secret: secret, token_endpoint_auth_method: 'client_secret_post', ...machine },
  {
    client_id: 'jwt',
    token_endpoint_auth_method: 'private_key_jwt',
    jwks: { keys: [publicKey] },
    ...machine,
  },
  {
    client_id: 'tls',
    token_endpoint_auth_method: 'tls_client_auth',
    tls_client_auth_san_dns: 'proxy.test',
    // The API then asks for the same certificate (RFC 8705 §3).
    tls_client_certificate_bound_access_tokens: true,
    ...machine,
  },
  {
    client_id: 'self-signed',
    token_endpoint_auth_method: 'self_signed_tls_client_auth',
    jwks: { keys: [jwkOf(new X509Certificate(readFileSync(selfSigned)))] },
    ...machine,
  },
  { client_id: 'consent', client_secret: secret, token_endpoint_auth_method: 'client_secret_basic', ...person },
  // Without a secret: PKCE is all there is (RFC 7636).
  { client_id: 'public', token_endpoint_auth_method: 'none', application_type: 'native', ...person },
];

function jwkOf(certificate) {
  return {
    ...certificate.publicKey.export({ format: 'jwk' }),
    x5c: [certificate.raw.toString('base64')],
  };
}

// --- the server --------------------------------------------------------------------------------

function handler(issuer) {
  const provider = new Provider(issuer, {
    clients,
    scopes: ['openid', 'offline_access', 'orders:read'],
    clientAuthMethods: [...new Set(clients.map((client) => client.token_endpoint_auth_method))],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      mTLS: {
        enabled: true,
        tlsClientAuth: true,
        selfSignedTlsClientAuth: true,
        certificateBoundAccessTokens: true,
        getCertificate,
        certificateAuthorized: (ctx) => ctx.socket.authorized,
        certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_san_dns'
          && getCertificate(ctx).subjectAltName.split(', ').includes(`DNS:${expected}`),
      },
    },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    interactions: { url: (_, interaction) => `/consent/${interaction.uid}` },
    // Always PKCE, always rotated: a reused refresh token ends the grant.
    pkce: { required: () => true },
    issueRefreshToken: (_, client) => client.grantTypeAllowed('refresh_token'),
    rotateRefreshToken: true,
    ttl: {
      AccessToken: accessTokenSeconds,
      ClientCredentials: accessTokenSeconds,
      Grant: 3600,
      IdToken: 3600,
      Interaction: 600,
      RefreshToken: 3600,
      Session: 3600,
    },
    cookies: { keys: ['only for tests'] },
  });

  provider.on('grant.success', (ctx) => tell('token', call(ctx)));
  provider.on('grant.error', (ctx, error) => tell('token', {
    ...call(ctx), error: error.error, detail: error.error_detail ?? error.error_description,
  }));
  provider.on('grant.revoked', () => tell('revoked'));
  provider.on('server_error', (_, error) => tell('server_error', { detail: error.stack }));

  const oauth = provider.callback();
  return (request, response) => {
    const { pathname } = new URL(request.url, issuer);
    const answer = pathname.startsWith('/consent/') ? consent(provider, request, response)
      : pathname.startsWith('/api/') ? api(provider, request, response)
        : oauth(request, response);
    answer.catch((error) => {
      tell('server_error', { detail: error.stack });
      response.writeHead(500).end();
    });
  };
}

function getCertificate({ socket }) {
  return socket.getPeerX509Certificate();
}

// What a call of the token endpoint looked like. The provider accepts either place for a secret
// whatever was registered, so the place is told: a test can insist on one.
function call(ctx) {
  const { params = {}, client } = ctx.oidc;
  const auth = ctx.headers.authorization ? 'basic'
    : params.client_secret ? 'post'
      : params.client_assertion ? 'jwt'
        : client && client.clientAuthMethod !== 'none' ? 'certificate' : 'none';
  return {
    client: client?.clientId, grant: params.grant_type, auth, scope: params.scope,
  };
}

// The person at the browser, who logs in and says yes at once.
async function consent(provider, request, response) {
  const { params } = await provider.interactionDetails(request, response);
  const grant = new provider.Grant({ accountId: 'registrar', clientId: params.client_id });
  grant.addOIDCScope(params.scope);
  await provider.interactionFinished(request, response, {
    login: { accountId: 'registrar' },
    consent: { grantId: await grant.save() },
  });
}

// The vendor's API: 200 with what it saw apart from the token, or 401 (RFC 6750 §3.1).
async function api(provider, request, response) {
  const presented = /^Bearer (\S+)$/.exec(request.headers.authorization)?.[1];
  const token = presented
    && (await provider.ClientCredentials.find(presented) ?? await provider.AccessToken.find(presented));
  const certificate = request.socket.getPeerX509Certificate();
  const bound = token?.['x5t#S256'];
  const { authorization, ...others } = request.headers;
  const body = token && (!bound || (certificate && bound === thumbprint(certificate)))
    ? { client: token.clientId, scope: token.scope, bound: Boolean(bound), others }
    : { error: 'invalid_token' };
  response.writeHead(body.error ? 401 : 200, {
    'content-type': 'application/json',
    ...(body.error && { 'www-authenticate': 'Bearer error="invalid_token"' }),
  });
  response.end(JSON.stringify(body));
}

function thumbprint(certificate) {
  return createHash('sha256').update(certificate.raw).digest('base64url');
}
