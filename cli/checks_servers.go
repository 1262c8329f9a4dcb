package cli

import (
	"github.com/myelin-sd/myelin/config"
	"github.com/myelin-sd/myelin/registrar"
)

// serverCheck makes a check that speaks a server's own protocol. known is false when the type is none of those.
func serverCheck(c config.Check) (check registrar.HealthCheck, known bool, err error) {
	switch c.Type {
	case "redis":
		check, err = registrar.NewRedis(registrar.RedisOptions{
			Host: c.Host, Port: c.Port, Socket: c.Socket, TLS: checkTLS(c),
			Username: c.Username, Password: registrar.Secret(c.Password), PasswordFile: c.PasswordFile, Role: c.Role,
		})
	case "mysql":
		check, err = registrar.NewMySQL(registrar.MySQLOptions{Host: c.Host, Port: c.Port, Socket: c.Socket, Username: c.Username})
	case "postgres":
		check, err = registrar.NewPostgres(registrar.PostgresOptions{
			Host: c.Host, Port: c.Port, Socket: c.Socket, TLS: checkTLS(c), Username: c.Username, Database: c.Database,
		})
	case "amqp":
		check, err = registrar.NewAMQP(registrar.AMQPOptions{
			Host: c.Host, Port: c.Port, TLS: checkTLS(c),
			Username: c.Username, Password: registrar.Secret(c.Password), PasswordFile: c.PasswordFile, VirtualHost: c.VirtualHost,
		})
	case "zookeeper":
		check, err = registrar.NewZooKeeper(registrar.ZooKeeperOptions{Host: c.Host, Port: c.Port, TLS: checkTLS(c), Word: c.Word})
	default:
		return nil, false, nil
	}
	return check, true, err
}
