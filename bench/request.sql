SELECT nats_request_text('c', 'hello');
