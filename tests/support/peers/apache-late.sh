#!/bin/sh
# Behind apache-late.conf: a token at /vedauth/authorize/certificate, elsewhere one line of JSON
# about the connection and then the request's body.
printf 'Content-Type: application/json\r\n\r\n'
if [ "$REQUEST_URI" = /vedauth/authorize/certificate ]; then
    cat >/dev/null
    exec echo '{"access_token":"late==","expires_in":3600,"token_type":"Bearer"}'
fi
printf '{"serial":"%s","tls":"%s","connection":"%s","authorization":"%s"}\n' \
    "$SSL_CLIENT_M_SERIAL" "$SSL_PROTOCOL" "$REMOTE_PORT" "$HTTP_AUTHORIZATION"
exec cat
