<?php
// The built-in server of PHP: a line for each request, to the file that SEEN names.

// What is not visible ASCII as \xHH, so that fields stay apart.
function escaped($text)
{
    return preg_replace_callback('/[^\x21-\x5b\x5d-\x7e]/', fn($found) => sprintf('\\x%02x', ord($found[0])), $text);
}

$uri = $_SERVER['REQUEST_URI'];
$path = preg_match('#^[a-z]+://[^/]*#i', $uri, $found) ? substr($uri, strlen($found[0])) : $uri;
$path = rawurldecode(explode('?', $path, 2)[0]);
$fields = [
    'request',
    $_SERVER['SERVER_PORT'],
    escaped($_SERVER['REQUEST_METHOD']),
    escaped($path),
    escaped($_SERVER['PHP_SELF']),
    escaped($_SERVER['HTTP_HOST'] ?? ''),
    escaped($_SERVER['HTTP_X_LIMIT'] ?? ''),
    '',
];
file_put_contents(getenv('SEEN'), implode("\t", $fields) . "\n", FILE_APPEND | LOCK_EX);
header('Content-Type: text/plain');
echo 'saw ', $_SERVER['REQUEST_METHOD'], ' ', $path, "\n";
